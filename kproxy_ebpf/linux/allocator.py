"""What the C library keeps of memory that is free (mallopt(3), malloc_trim(3)). Only glibc has it: elsewhere these do
nothing.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # malloc.h


def use_one_arena() -> None:
    """Let all threads share one heap. By default each gets its own, and keeps for good what it once needed: the
    daemon's threads do little, and mostly one at a time. Call it before there are any.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return to the kernel what is free, also between what is in use. That takes some milliseconds."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


_libc = ctypes.CDLL(None)
