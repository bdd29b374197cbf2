"""The BPF file system, where everything that outlives the daemon is pinned, and the lock on our part of it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import time
from pathlib import Path
from typing import Self

from kproxy_ebpf.errors import BusyError, NodeError, PermissionDeniedError

DEFAULT = Path("/sys/fs/bpf")
ROOT = "kproxy-ebpf"
# Commands take the lock, shared, for microseconds to learn whether a daemon runs. A holder is waited for this long.
_GLANCE_SECONDS = 0.2
_MAGIC = 0xCAFE4A11  # of bpffs, linux/magic.h


def is_bpffs(folder: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)  # struct statfs: at most 120 bytes; f_type is its first word
    if libc.statfs(bytes(folder), buffer) != 0:
        return False
    return bool(struct.unpack_from("@l", buffer)[0] & 0xFFFFFFFF == _MAGIC)


def root(bpffs: Path) -> Path:
    """Our folder in `bpffs`, which is mounted there if it is not. Raises NodeError, PermissionDeniedError."""
    if os.geteuid() != 0:
        raise PermissionDeniedError("BPF programs and their pins belong to root: run as root")
    try:
        if not is_bpffs(bpffs):
            _mount(bpffs)
        folder = bpffs / ROOT
        for path in (folder, folder / "links"):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise NodeError(f"{bpffs} can't be used as a BPF file system ({error.strerror}): mount one there") from error
    return folder


def _mount(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", bytes(folder), b"bpf", 0, b"mode=0700") != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class NodeLock:
    """Whoever writes to the datapath holds it, so a second daemon on a node is refused.

    It is a flock on our folder in bpffs itself. Whoever shares the datapath shares the lock, in any mount namespace,
    and the kernel releases it when its holder ends.
    """

    def __init__(self, bpffs: Path) -> None:
        self._folder = root(bpffs)
        self._fd = -1

    def acquire(self) -> None:
        """Raises BusyError naming the holder."""
        self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        deadline = time.monotonic() + _GLANCE_SECONDS
        while not self._try_lock():
            if time.monotonic() > deadline:
                holder = _holder(self._fd)
                self.release()
                raise BusyError(f"{holder} already runs the datapath in {self._folder}: stop it first")
            time.sleep(_GLANCE_SECONDS / 10)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _holder(fd: int) -> str:
    """Names the holder of the flock, as far as /proc/locks tells: it names no process of another pid namespace."""
    stat = os.fstat(fd)
    wanted = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == wanted and int(fields[4]) > 0:
            return f"process {fields[4]}"
    return "another process"
