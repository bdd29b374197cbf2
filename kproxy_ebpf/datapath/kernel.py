"""Which kernel runs here."""

from __future__ import annotations

import os
import re


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """(major, minor) of the running kernel, or of the `release` given."""
    match = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)
