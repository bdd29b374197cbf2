"""The composition root: one TaskGroup that joins source, reconciler, datapath and servers."""

from __future__ import annotations

from kproxy_ebpf.daemon.core import start
from kproxy_ebpf.daemon.options import Options

__all__ = ["Options", "start"]
