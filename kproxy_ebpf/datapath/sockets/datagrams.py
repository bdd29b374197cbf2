"""UDP sockets that programs of an earlier version have led to a backend, and how they end (docs/decisions/0020).

The programs of those versions at sendmsg() and recvmsg() stay at the cgroup for a while after the upgrade. They go on
with the sockets that they have led, and lead no other.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from kproxy_ebpf.contract.layouts import Switches
from kproxy_ebpf.contract.scalars import U32
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.generations.migrate import shares_table
from kproxy_ebpf.datapath.generations.schema import read_layouts
from kproxy_ebpf.datapath.maps.arrays import MappedArray

log = structlog.get_logger(__name__)

KEPT_SECONDS = 86400.0
"""How long those programs stay: longer than most sessions over UDP last. They cost every datagram of a pod a call."""

_SENDING, _RECEIVING = "cgroup-sendmsg_*", "cgroup-recvmsg_*"
_TELLS = "datagrams_since_seconds"
"""The setting that all versions had that led datagrams."""


def keep_led_datagrams(generation: Generation) -> None:
    """Let the programs of other generations lead no more datagrams than those of sockets that they have led.

    To be called once `generation` is in force, and before the others are removed. Raises OSError.
    """
    for other in generation.others():
        layout = read_layouts(other.path).get("settings")
        if layout is None or _TELLS not in layout.value:
            continue
        offset, _ = layout.value["switches"]
        array = MappedArray(other.map("settings"))
        with array.map, array.words() as words:
            words[offset // U32.size] &= ~Switches.SOCKET & 0xFFFFFFFF
        if not shares_table("backends", other.path, generation.path):
            _detach(generation, _SENDING)  # they would never learn that a backend is gone
        log.info("UDP sockets that were led to backends go on", days=KEPT_SECONDS / 86400)


def retire_led_datagrams(generation: Generation) -> None:
    """Take those programs off once they have stayed long enough. Raises OSError."""
    if generation.age_seconds > KEPT_SECONDS and (_detach(generation, _SENDING) + _detach(generation, _RECEIVING)):
        log.info("programs for UDP sockets of an earlier version are taken off")


def _detach(generation: Generation, pins: str) -> int:
    found = list(_links(generation).glob(pins))
    for pin in found:
        pin.unlink(missing_ok=True)
    return len(found)


def _links(generation: Generation) -> Path:
    return generation.root / "links"
