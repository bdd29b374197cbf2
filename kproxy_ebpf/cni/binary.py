"""The plugin's program: where it comes from, and putting it where container runtimes look for plugins."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kproxy_ebpf.cni.conflist import PLUGIN
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux.files import write_durably

BIN_DIR = Path("/opt/cni/bin")


def shipped_plugin() -> Path:
    """Where this installation has the program: in a checkout, or beside the C sources. Raises NodeError."""
    candidates = [
        Path(__file__).parents[2] / "cni" / PLUGIN,
        Path(sys.prefix) / "share/kproxy-ebpf/cni" / PLUGIN,
        Path("/usr/share/kproxy-ebpf/cni") / PLUGIN,
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise NodeError(f"{PLUGIN} is not in {' or '.join(str(path.parent) for path in candidates)}: build it (make setup)")


def is_installed(folder: Path) -> bool:
    """True if runtimes find a program of the plugin's name in `folder`, of whatever version."""
    path = folder / PLUGIN
    return path.is_file() and os.access(path, os.X_OK)


def install(folder: Path) -> bool:
    """Put the program into `folder`. False if the same one is there.

    A program that runs can't be written ("text file busy"), but another one can take its name. Raises NodeError and
    OSError.
    """
    content, path = shipped_plugin().read_bytes(), folder / PLUGIN
    if is_installed(folder) and path.read_bytes() == content:
        return False
    beside = folder / f".{PLUGIN}.new"
    try:
        write_durably(beside, content, 0o755)
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)
    return True
