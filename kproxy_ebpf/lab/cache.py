"""What tests, demo and bench keep between runs: the control plane, compiled programs, what the load is made with."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of the user who runs them; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kproxy-ebpf" / name


def with_compiled_programs(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a daemon that shares compiled programs with all others of the lab: one compiles, once."""
    return {"KPROXY_CACHE_DIR": str(cache_folder("compiled"))} | environment
