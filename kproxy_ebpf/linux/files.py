"""Files as the kernel has them: written down to the disk, exchanging two names, followed in a folder."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

POLL_SECONDS = 2.0

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def exchange(one: Path, other: Path) -> None:
    """Give each file the other's name, in one step. Raises OSError: EINVAL where the file system can't."""
    if _libc.renameat2(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def write_durably(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Make a file, down to the disk; what a killed writer has left in its place goes. `owner`: uid and gid, where this
    process may give files away. Raises OSError.
    """
    path.unlink(missing_ok=True)
    with path.open("xb") as new:
        if owner is not None:
            with suppress(PermissionError):  # without CAP_CHOWN it is ours
                os.fchown(new.fileno(), *owner)
        os.fchmod(new.fileno(), mode)
        new.write(content)
        new.flush()
        os.fsync(new.fileno())


def signature(path: Path) -> tuple[int, ...]:
    """Changes whenever the file is written or replaced, also behind a symlink; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


async def happenings(folder: Path) -> AsyncGenerator[None, None]:
    """Yields whenever something happens in the folder, and now and then, for ever: a folder may be replaced, too, or
    come late.
    """
    from watchfiles import awatch

    while True:
        inode = signature(folder)[:1]
        try:
            async for _ in awatch(
                folder,
                recursive=False,
                debounce=200,
                step=50,
                rust_timeout=int(POLL_SECONDS * 1000),
                yield_on_timeout=True,
            ):
                yield
                if signature(folder)[:1] != inode:
                    break
        except OSError:
            yield
            await asyncio.sleep(POLL_SECONDS)
