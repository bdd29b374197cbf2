"""Generations: everything compiled from one text and one set of constants, pinned under their digest.

    BPFFS/kproxy-ebpf/<digest>/maps/…        frontends_v4, counters, …
    BPFFS/kproxy-ebpf/<digest>/programs/…    from_pod_v4, …
    BPFFS/kproxy-ebpf/current                a symbolic link to the generation in force
    BPFFS/kproxy-ebpf/new-<digest>           one being built, or what a killed build left
    BPFFS/kproxy-ebpf/old-<digest>           one that had to make way for another of its name

datapath/take_over.py tells how one generation follows another.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import structlog

from kproxy_ebpf.contract.layouts import TIMEOUT_SECONDS, PredecessorIndex
from kproxy_ebpf.contract.maps import FAMILIES, FAMILY_MAPS, SHARED_MAPS, pinned_name
from kproxy_ebpf.contract.programs import PROGRAMS, SOCKET_PROGRAMS
from kproxy_ebpf.contract.scalars import U32
from kproxy_ebpf.datapath.generations import bpffs
from kproxy_ebpf.datapath.generations.build import Workshop
from kproxy_ebpf.datapath.generations.migrate import (
    copy_flows,
    copy_missing_flows,
    copy_service_tables,
    copy_settings,
    shares_table,
)
from kproxy_ebpf.datapath.generations.sources import Constants, SourceText, read_source, source_folder
from kproxy_ebpf.errors import LoadError
from kproxy_ebpf.linux.bpf import Map, Program

log = structlog.get_logger(__name__)

KEPT_SECONDS = max(TIMEOUT_SECONDS.values())
"""How long programs whose flows can't be copied go on serving them: the longest time-out of a flow."""

_CURRENT = "current"
_NEW, _OLD = "new-", "old-"


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation's pins. `ready`: its service tables hold what those in force hold, so that its programs may take
    over at once; False for the very first generation, and where the tables could not be copied.
    """

    path: Path
    ready: bool = field(default=True, compare=False)

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
        """True if every pin is there."""
        maps = {pinned_name(name, family) for name in FAMILY_MAPS for family in FAMILIES} | {*SHARED_MAPS}
        programs = {pinned_name(name, family) for family in FAMILIES for name in (*PROGRAMS, *SOCKET_PROGRAMS[family])}
        return maps <= _names(self.path / "maps") and programs <= _names(self.path / "programs")

    @property
    def _serves(self) -> bool:
        """True if its programs at the links are still pinned; it may be of another version and have other maps."""
        programs = {pinned_name(name, family) for name in ("from_pod", "to_pod") for family in FAMILIES}
        return programs <= _names(self.path / "programs")

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

    def copy_flows(self) -> None:
        """Copy the flows of the generation in force, and make that the predecessor. To be called before `activate`."""
        before = _in_force(self.root)
        if before is None or before == self:
            return  # `predecessor` is as an earlier attempt left it
        copy_flows(before.path, self.path)
        if shares_table("flows", before.path, self.path):
            older = [other for other in self.others() if other != before]
            self._set_predecessor(older[0] if older else None)
        else:
            self._set_predecessor(before)

    def retire_others(self) -> None:
        """Copy the flows that are missing here, and remove all other generations. No attached program may be theirs.

        Of those whose flows can't be copied the newest stays the predecessor: its programs serve them until
        `retire_aged`, or until the next generation has to stay.
        """
        others = self.others()
        unread = [other for other in others if not copy_missing_flows(other.path, self.path)]
        kept = unread[0] if unread else None
        self._set_predecessor(kept)
        for other in others:
            if other != kept:
                shutil.rmtree(other.path)
        if kept is not None:
            log.warning(
                "flows stay with the programs that made them", generation=kept.digest, days=KEPT_SECONDS / 86400
            )

    def retire_aged(self) -> None:
        """Remove a generation that has been kept for its flows for longer than a flow lives."""
        if self.has_predecessor and self.age_seconds > KEPT_SECONDS:
            self.retire_kept()

    def retire_kept(self) -> None:
        """Remove the generation that was kept for its flows. To be called when none of them lives any more."""
        self._set_predecessor(None)
        for other in self.others():
            shutil.rmtree(other.path)

    @property
    def age_seconds(self) -> float:
        """How long ago its maps were pinned."""
        return time.time() - _made_at(self)

    @property
    def has_predecessor(self) -> bool:
        """True if another generation serves flows that are not known here."""
        return bool(self.others())

    def others(self) -> list[Generation]:
        """All other generations, the newest first."""
        folders = [path for path in self.root.iterdir() if not path.is_symlink() and (path / "maps").is_dir()]
        others = [Generation(path) for path in folders if path != self.path]
        return sorted(others, key=_made_at, reverse=True)

    def _set_predecessor(self, generation: Generation | None) -> None:
        """Let these programs, as far as they are pinned, have the packets of no known flow; with None nobody."""
        present = _names(generation.path / "programs") if generation is not None and generation._serves else set()
        for family, slot in product(FAMILIES, PredecessorIndex):
            index, name = U32.pack(slot), slot.name.lower()
            with self.map("predecessor", family) as predecessor:
                if generation is None or pinned_name(name, family) not in present:
                    predecessor.delete(index)
                    continue
                with generation.program(name, family) as program:
                    predecessor.update(index, U32.pack(program.fd))


def current(bpffs_folder: Path) -> Generation | None:
    """The generation in force, whether or not a daemon runs; None where there is none."""
    return _in_force(bpffs_folder / bpffs.ROOT)


def ensure(
    bpffs_folder: Path, constants: Constants, sources: Path | None = None, workshop: Workshop | None = None
) -> Generation:
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
    return _build_beside(root, source, in_force, workshop or Workshop())


def remove_all(bpffs_folder: Path) -> None:
    """Unpin everything that is ours, which also detaches what is attached by pinned links."""
    root = bpffs_folder / bpffs.ROOT
    if root.exists():
        shutil.rmtree(root)


def _build_beside(root: Path, source: SourceText, previous: Generation | None, workshop: Workshop) -> Generation:
    folder, done = root / f"{_NEW}{source.digest}", root / source.digest
    try:
        for name in ("", "maps", "programs"):
            (folder / name).mkdir(mode=0o700)
        workshop.build(source, folder, previous.path if previous else None)
        _check_complete(Generation(folder))
        if previous is not None:
            copy_settings(previous.path, folder)
        ready = previous is not None and copy_service_tables(previous.path, folder)
        if done.exists():  # never in force, incomplete, or one that still serves flows of its own
            shutil.rmtree(root / f"{_OLD}{source.digest}", ignore_errors=True)
            done.rename(root / f"{_OLD}{source.digest}")
        folder.rename(done)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Generation(done, ready)


def _check_complete(generation: Generation) -> None:
    if not generation.is_complete:
        raise LoadError(f"not everything was pinned in {generation.path}: the C sources do not fit this version")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _in_force(root: Path) -> Generation | None:
    link = root / _CURRENT
    return Generation(root / link.readlink()) if link.is_symlink() and link.exists() else None


def _made_at(generation: Generation) -> float:
    """When its maps were pinned, in seconds since 1970."""
    return (generation.path / "maps").stat().st_mtime
