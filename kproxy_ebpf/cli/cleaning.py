"""`cleanup`: everything of ours goes, nothing else is touched."""

from __future__ import annotations

import shutil
from pathlib import Path

from kproxy_ebpf.datapath import bpffs
from kproxy_ebpf.datapath.bpffs import NodeLock
from kproxy_ebpf.datapath.clsact import Clsact
from kproxy_ebpf.datapath.generation import remove_all
from kproxy_ebpf.observe.state import state_dir


def clean(folder: Path) -> str:
    """Detach, unpin, and forget what the daemon wrote; return what was done. Raises BusyError while a daemon runs."""
    if not (folder / bpffs.ROOT).exists():
        shutil.rmtree(state_dir(folder), ignore_errors=True)
        return f"nothing of ours is pinned in {folder}"
    with NodeLock(folder):
        links = _detach(folder / bpffs.ROOT / "links")
        remove_all(folder)
        shutil.rmtree(state_dir(folder), ignore_errors=True)
    return f"programs taken off {links} links, programs and maps unpinned from {folder}"


def _detach(pins: Path) -> int:
    """Take all programs off, by filter and by pin: a TCX link ends with its pin. Before the maps, which they use."""
    clsact = Clsact(pins)
    filtered = clsact.attached()
    for ifindex in filtered:
        clsact.detach(ifindex)
    linked = {pin.name.partition("-")[0] for pin in pins.iterdir() if not pin.is_dir()}
    for pin in pins.iterdir():
        pin.rmdir() if pin.is_dir() else pin.unlink()
    return len(filtered) + len(linked)
