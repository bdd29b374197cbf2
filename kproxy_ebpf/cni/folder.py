"""The folder with the node's CNI configuration: which file the node uses, and our plugin in it.

Container runtimes use the file whose name sorts first. Other agents own these files: they write them anew whenever they
like, in place or by another file. So each change of ours is one step, what another agent wrote meanwhile stays, and no
file is ever made.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kproxy_ebpf.cni.conflist import (
    PLUGIN,
    SINGLE,
    ConflistError,
    entry_of,
    has_plugin,
    is_multus,
    with_plugin,
    without_plugin,
)
from kproxy_ebpf.linux.files import exchange, write_durably

CONF_DIR = Path("/etc/cni/net.d")
LIST = ".conflist"
SUFFIXES = (".conf", LIST, ".json")
"""What runtimes read. A name that ends in anything else is nothing to them."""

MAX_BYTES = 1 << 20
ATTEMPTS = 10
_BESIDE = "kproxy-ebpf-new"


@dataclass(frozen=True, slots=True)
class Standing:
    """The file that the node uses (None: there is none), whether our plugin stands in it, and why it can't."""

    file: Path | None
    is_in: bool = False
    problem: str = ""

    def __str__(self) -> str:
        if self.is_in or not self.problem:
            return f"{PLUGIN} is {'' if self.is_in else 'not '}in {self.file}"
        return self.problem


def standing(folder: Path) -> Standing:
    """How our plugin stands; never raises."""
    file = None
    try:
        file = used_file(folder)
        if file is None:
            return Standing(None, problem=f"{folder} has no CNI configuration yet")
        text = read_list(file)
        with_plugin(text, entry_of())
        return Standing(file, has_plugin(text))
    except ConflistError as error:
        return Standing(file, problem=f"{PLUGIN} can't be in {file}: {error}")
    except OSError as error:
        return Standing(file, problem=f"{error.filename or folder} can't be read: {error.strerror}")


def used_file(folder: Path) -> Path | None:
    """The file that the node uses for its pods: the first one, or the first one behind Multus's. Raises OSError."""
    for path in _files(folder):
        try:
            if not is_multus(_read(path)):
                return path
        except ConflistError:
            return path
    return None


def read_list(file: Path) -> str:
    """The text of a list of plugins. Raises OSError, ConflistError for a single plugin or what is no text."""
    if file.suffix != LIST:
        raise ConflistError(SINGLE)
    return _read(file)


def put_in(folder: Path, entry: Mapping[str, str]) -> bool:
    """Put our plugin into the list that the node uses, and take it out of all others. True if anything changed.

    Raises ConflistError where it can't stand there, OSError.
    """
    file = used_file(folder)
    changed = _take_out_of(path for path in _files(folder) if path != file)
    if file is not None:
        changed += [file] if _change(file, lambda text: with_plugin(text, entry)) else []
    return bool(changed)


def take_out(folder: Path) -> list[Path]:
    """Take our plugin out of all lists; those that it was in. Raises OSError, ConflistError."""
    return _take_out_of(_files(folder)) if folder.is_dir() else []


def _take_out_of(files: Iterator[Path]) -> list[Path]:
    changed = []
    for path in files:
        with suppress(ConflistError, FileNotFoundError):  # it is in no list that can't be read
            if path.suffix == LIST and has_plugin(_read(path)) and _change(path, without_plugin):
                changed.append(path)
    return changed


def _files(folder: Path) -> Iterator[Path]:
    names = sorted(
        (path for path in folder.iterdir() if path.suffix in SUFFIXES), key=lambda path: os.fsencode(path.name)
    )
    return (path for path in names if not path.is_dir())


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConflistError(f"it is larger than {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConflistError(f"it is not UTF-8: {error}") from None


def _change(file: Path, change: Callable[[str], str]) -> bool:
    """Write what `change` makes of a list, from what stands there at that moment. True if that is something else."""
    file = file.resolve(strict=True)  # a link to a file elsewhere stays one
    for _ in range(ATTEMPTS):
        before = read_list(file)
        after = change(before)
        if after == before:
            return False
        if replace(file, before.encode(), after.encode()):
            return True
    raise OSError(errno.EBUSY, "it is written all the time", str(file))


def replace(file: Path, before: bytes, after: bytes) -> bool:
    """Let `file` hold `after` if it holds `before`. False where another writer came first: then its content stays.

    Readers see one content or the other, never a part, also after a power failure. Raises OSError.
    """
    beside = file.with_name(f".{file.name}.{_BESIDE}")
    try:
        status = file.stat()
        write_durably(beside, after, status.st_mode & 0o7777, (status.st_uid, status.st_gid))
        return _exchange_if(file, beside, before, after)
    except FileNotFoundError:
        return False
    finally:
        beside.unlink(missing_ok=True)


def _exchange_if(file: Path, beside: Path, before: bytes, after: bytes) -> bool:
    """Whatever is found in the place of what was thought to be there is newer, and is put back."""
    given, expected = after, before
    while True:
        try:
            exchange(beside, file)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return _rename_if(file, beside, before)
        found = beside.read_bytes()
        if found == expected:
            return given == after
        given, expected = found, given


def _rename_if(file: Path, beside: Path, before: bytes) -> bool:
    """On a file system that can't exchange names, where a writer of the same moment loses."""
    if file.read_bytes() != before:
        return False
    beside.rename(file)
    return True
