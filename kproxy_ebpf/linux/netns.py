"""The other network namespaces of the node, and entering one with a thread."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDERS = (Path("/run/netns"), Path("/var/run/netns"))
"""Where container runtimes (and `ip netns`) keep network namespaces as files."""

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceGoneError(OSError):
    """There is no such network namespace, or no more."""


@contextmanager
def entered(namespace: Path) -> Iterator[None]:
    """The calling thread is in that network namespace for the length of the block (never await inside it).

    Raises NamespaceGoneError.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(namespace)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _enter(namespace: Path) -> None:
    try:
        there = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(there)
        finally:
            os.close(there)
    except OSError as error:
        raise NamespaceGoneError(error.errno, error.strerror, str(namespace)) from None


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def other_namespaces() -> list[Path]:
    """A file of each network namespace but our own: those that runtimes keep, and those of the processes in sight.

    All of the node's processes are in sight only from the node's pid namespace.
    """
    found: dict[tuple[int, int], Path] = {}
    candidates = [path for folder in FOLDERS if folder.is_dir() for path in folder.iterdir()]
    candidates += [process / "ns/net" for process in Path("/proc").iterdir() if process.name.isdigit()]
    for path in candidates:
        with suppress(OSError):  # the process has ended
            status = path.stat()
            found.setdefault((status.st_dev, status.st_ino), path)
    own = Path("/proc/thread-self/ns/net").stat()
    found.pop((own.st_dev, own.st_ino), None)
    return list(found.values())
