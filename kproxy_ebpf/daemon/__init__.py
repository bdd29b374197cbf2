"""The composition root: one TaskGroup that joins source, reconciler, datapath and servers."""

from __future__ import annotations

from kproxy_ebpf.daemon.options import Options
from kproxy_ebpf.daemon.start import start

__all__ = ["Options", "start"]
