"""Which kernel runs here."""

from __future__ import annotations

import os
import re

from kproxy_ebpf.errors import NodeError

OLDEST = (5, 10)


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """(major, minor) of the running kernel, or of the `release` given."""
    match = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def require_kernel() -> None:
    """Raises NodeError on a kernel that the programs can't be loaded on: the verifier's own words help nobody."""
    if kernel_version() < OLDEST:
        major, minor = OLDEST
        raise NodeError(f"Linux {os.uname().release} is too old: {major}.{minor} or later is needed")
