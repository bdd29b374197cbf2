"""The daemon's first moment: the generation is being built while all else is imported."""

from __future__ import annotations

import gc
import resource

import structlog

from kproxy_ebpf import __version__
from kproxy_ebpf.daemon.building import Building
from kproxy_ebpf.daemon.options import Options
from kproxy_ebpf.datapath.generations.bpffs import NodeLock
from kproxy_ebpf.linux import allocator
from kproxy_ebpf.observe import logging

log = structlog.get_logger(__name__)

COLLECTOR_THRESHOLDS = (100_000, 20, 100)  # Python's defaults take a third of the time of a first sync


def start(options: Options) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises KproxyError."""
    allocator.use_one_arena()
    logging.configure()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    _raise_file_limit()
    log.info("starting", version=__version__, node=options.node_name, bpffs=str(options.bpffs))
    with NodeLock(options.bpffs), Building(options) as building:
        from kproxy_ebpf.daemon.core import serve  # takes half a second

        serve(options, building)


def _raise_file_limit() -> None:
    """The soft limit is 1,024 for programs that call select(), which nothing here does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
