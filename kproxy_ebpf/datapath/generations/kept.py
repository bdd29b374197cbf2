"""Compiled programs on disk: one file for each digest, in a folder of root alone.

What is read there is loaded into the kernel, so nobody but the daemon's own user may be able to write it: neither the
folder nor the file, and neither through a symbolic link.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from kproxy_ebpf.datapath.generations.object_file import FORMAT, ObjectFile, UnfitError, read, write
from kproxy_ebpf.datapath.generations.toolchain import require_same_tools

log = structlog.get_logger(__name__)

DEFAULT = Path("/var/lib/kproxy-ebpf")
KEPT_FILES = 8
"""Files that stay in the folder, 0.4 MB each. A node needs one for its version and kernel; the others are there for
going back, to an earlier version, an earlier kernel or earlier tools, a few times over.
"""

_SUFFIX, _NEW = ".programs", "new-"
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_LEFTOVER_SECONDS = 3600


def default_folder() -> Path:
    """KPROXY_CACHE_DIR or /var/lib/kproxy-ebpf."""
    return Path(os.environ.get("KPROXY_CACHE_DIR") or DEFAULT)


def digest_of(texts: Mapping[int, str], machine: str = platform.machine()) -> str:
    """Of all that is compiled, as far as it can be told where there is no compiler: the tools are in the file."""
    parts = (FORMAT, machine, *(f"{family}\n{text}" for family, text in sorted(texts.items())))
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def find(folders: Sequence[Path], digest: str, tell: Callable[[str], object] = log.warning) -> ObjectFile | None:
    """The first file of this digest that is fit to be loaded. `tell` is given a sentence for each that is not."""
    for folder in folders:
        try:
            found = _read(folder, digest)
        except UnfitError as reason:
            tell(f"compiled programs are not loaded: {folder / _name(digest)} {reason}")
        except OSError as error:
            tell(f"compiled programs are not loaded: {folder} can't be read ({error.strerror})")
        else:
            if found is not None:
                return found
    return None


def keep(folder: Path, objects: ObjectFile, at_most: int = KEPT_FILES) -> None:
    """Write a file, and remove those beyond the newest `at_most`.

    Raises OSError, UnfitError where others may write to the folder.
    """
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    with _opened(folder) as directory:
        os.fchmod(directory, _FOLDER_MODE)
        beside = f"{_NEW}{os.getpid()}{_SUFFIX}"
        try:
            _write_through(directory, beside, write(objects))
            os.rename(beside, _name(objects.digest), src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside, dir_fd=directory)
            raise
        os.fsync(directory)
        _remove_old(directory, at_most)


def _name(digest: str) -> str:
    return digest[:16] + _SUFFIX


def _read(folder: Path, digest: str) -> ObjectFile | None:
    """None where there is no such file. Raises OSError, UnfitError."""
    try:
        with _opened(folder) as directory:
            descriptor = os.open(_name(digest), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
            with os.fdopen(descriptor, "rb") as file:
                _require_own(os.fstat(descriptor))
                objects = read(file.read(), digest)
                require_same_tools(objects.tools)
                with suppress(OSError):  # what was used stays longest, where that can be noted
                    os.utime(descriptor)
    except FileNotFoundError:
        return None
    return objects


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of the folder itself, which nobody can exchange meanwhile. Raises OSError, UnfitError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _require_own(os.fstat(descriptor), "is in a folder that ")
        yield descriptor
    finally:
        os.close(descriptor)


def _require_own(status: os.stat_result, what: str = "") -> None:
    if status.st_uid != os.geteuid():
        raise UnfitError(f"{what}belongs to another user ({status.st_uid})")
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise UnfitError(f"{what}other users may write (mode {stat.S_IMODE(status.st_mode):04o})")


def _write_through(directory: int, name: str, data: bytes) -> None:
    """Write a new file, on the disk itself when this returns."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(name, flags, _FILE_MODE, dir_fd=directory), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove_old(directory: int, at_most: int) -> None:
    """Of our files: those beyond the newest, and what a writer that was killed left."""
    times = {name: os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime for name in os.listdir(directory)}
    ours = [name for name in times if name.endswith(_SUFFIX)]
    whole = sorted((name for name in ours if not name.startswith(_NEW)), key=lambda name: times[name], reverse=True)
    aborted = [name for name in ours if name.startswith(_NEW) and times[name] < time.time() - _LEFTOVER_SECONDS]
    for name in (*whole[at_most:], *aborted):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
