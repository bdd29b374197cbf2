"""Generations: everything compiled from one text and one set of constants, pinned under their digest.

    BPFFS/kproxy-ebpf/<digest>/maps/…        frontends_v4, counters, …
    BPFFS/kproxy-ebpf/<digest>/programs/…    from_pod_v4, …
    BPFFS/kproxy-ebpf/current                a symbolic link to the generation in force
    BPFFS/kproxy-ebpf/new-<digest>           one being built, or what a killed build left

The way from one to the next, which no packet notices: `ensure` builds it beside, taking maps over or copying them;
the caller fills the tables if it is not `ready`, calls `activate`, swaps the attached programs, and then calls
`retire_others`.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kproxy_ebpf.datapath import bpffs
from kproxy_ebpf.datapath.bpf import ARRAY, NO_EXIST, Map, Program
from kproxy_ebpf.datapath.build import FAMILIES, Built, build
from kproxy_ebpf.datapath.contract import (
    FAMILY_MAPS,
    PROGRAMS,
    SERVICE_TABLES,
    SHARED_MAPS,
    SOCKET_PROGRAMS,
    pinned_name,
)
from kproxy_ebpf.datapath.source import Constants, Source, read_source, source_folder
from kproxy_ebpf.errors import LoadError

_CURRENT = "current"
_NEW = "new-"


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation's pins. `ready`: its service tables hold what the generation in force holds, so that its programs
    may take over at once; False for the very first and where the tables could not be carried over.
    """

    path: Path
    ready: bool = field(default=True, compare=False)
    fresh: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def digest(self) -> str:
        return self.path.name

    @property
    def root(self) -> Path:
        return self.path.parent

    def map(self, name: str, family: int | None = None) -> Map:
        """Open a map by its C name; `family` for all but the shared ones. Raises OSError."""
        return Map.open(self.path / "maps" / (pinned_name(name, family) if family else name))

    def program(self, name: str, family: int) -> Program:
        """Open a program by its C name. Raises OSError."""
        return Program.open(self.path / "programs" / pinned_name(name, family))

    @property
    def is_complete(self) -> bool:
        """Whether every pin is there."""
        maps = {pinned_name(name, family) for name in FAMILY_MAPS for family in FAMILIES} | {*SHARED_MAPS}
        programs = {pinned_name(name, family) for family in FAMILIES for name in (*PROGRAMS, *SOCKET_PROGRAMS[family])}
        return maps <= _names(self.path / "maps") and programs <= _names(self.path / "programs")

    @property
    def is_current(self) -> bool:
        link = self.root / _CURRENT
        return link.is_symlink() and link.readlink().name == self.digest

    def activate(self) -> None:
        """Make this the generation in force, in one step."""
        if self.is_current:
            return
        link = self.root / f"{_NEW}{_CURRENT}"
        link.unlink(missing_ok=True)
        link.symlink_to(self.digest)
        link.rename(self.root / _CURRENT)

    def retire_others(self) -> None:
        """Remove all other generations, once no attached program is theirs.

        Flows that their programs made after `ensure` had copied the table are carried over now.
        """
        for other in _generations(self.root):
            if other.name == self.digest:
                continue
            if self.ready:
                for pinned in _flow_tables() & self.fresh:
                    _add_missing(other / "maps" / pinned, self.path / "maps" / pinned)
            shutil.rmtree(other)


def current(bpffs_folder: Path) -> Generation | None:
    """The generation in force, whether or not a daemon runs; None where there is none."""
    link = bpffs_folder / bpffs.ROOT / _CURRENT
    return Generation(link.parent / link.readlink()) if link.is_symlink() and link.exists() else None


def ensure(bpffs_folder: Path, constants: Constants, sources: Path | None = None) -> Generation:
    """The generation of these constants and of the C sources: adopted where it is in force, else built, not activated.

    The caller holds the NodeLock. Raises NodeError, LoadError.
    """
    root = bpffs.root(bpffs_folder)
    source = read_source(sources or source_folder(), constants)
    in_force = current(bpffs_folder)
    if in_force is not None and in_force.digest == source.digest and in_force.is_complete:
        return in_force
    for leftover in root.glob(f"{_NEW}*"):
        leftover.unlink() if leftover.is_symlink() else shutil.rmtree(leftover)
    return _build_beside(root, source, in_force)


def remove_all(bpffs_folder: Path) -> None:
    """Unpin everything that is ours, which also detaches what is attached by pinned links."""
    root = bpffs_folder / bpffs.ROOT
    if root.exists():
        shutil.rmtree(root)


def _build_beside(root: Path, source: Source, previous: Generation | None) -> Generation:
    folder, done = root / f"{_NEW}{source.digest}", root / source.digest
    try:
        for name in ("", "maps", "programs"):
            (folder / name).mkdir(mode=0o700)
        built = build(source, folder, previous.path if previous else None)
        ready = previous is not None and _carry_over(built, previous.path, folder)
        _check_complete(Generation(folder))
        shutil.rmtree(done, ignore_errors=True)  # never in force, or incomplete
        folder.rename(done)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Generation(done, ready, built.fresh)


def _check_complete(generation: Generation) -> None:
    if not generation.is_complete:
        raise LoadError(f"not everything was pinned in {generation.path}: the C sources do not fit this version")


def _carry_over(built: Built, previous: Path, folder: Path) -> bool:
    """Copy what could not be taken over. Returns whether the service tables are complete, and flows with them."""
    service_tables = {pinned_name(name, family) for name in SERVICE_TABLES for family in FAMILIES}
    if not service_tables & built.fresh <= built.copyable:
        return False
    for pinned in (service_tables & built.fresh) | (_flow_tables() & built.copyable):
        _copy(previous / "maps" / pinned, folder / "maps" / pinned)
    return True


def _copy(source: Path, target: Path) -> None:
    with Map.open(source) as old, Map.open(target) as new:
        for keys, values in old.chunks():
            if old.info.type != ARRAY or any(values):  # arrays are mostly empty
                new.update_batch(keys, values)


def _add_missing(source: Path, target: Path) -> None:
    """Copy the entries that `target` lacks, if the two are different maps of one layout."""
    if not source.exists():
        return
    with Map.open(source) as old, Map.open(target) as new:
        if old.info.id == new.info.id or old.info.entry != new.info.entry:
            return
        for key, value in old.items():
            with suppress(FileExistsError):
                new.update(key, value, NO_EXIST)


def _flow_tables() -> set[str]:
    return {pinned_name(name, family) for name in ("flows", "affinity") for family in FAMILIES}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _generations(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if not path.is_symlink() and (path / "maps").is_dir()]
