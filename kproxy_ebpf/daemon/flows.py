"""The flow tables, from the daemon's side: what begins and ends with the modes, and the room in them.

A flow table never refuses an entry: a full one forgets others (datapath/flows/sweep.py), and an established connection
that has been idle for long may be among them. So /healthz tells of a table that is nearly full while it can be changed.
"""

from __future__ import annotations

import asyncio

import structlog

from kproxy_ebpf.contract.maps import FAMILIES, pinned_name
from kproxy_ebpf.datapath.flows import host_udp
from kproxy_ebpf.datapath.flows.records import live_connections
from kproxy_ebpf.datapath.flows.sweep import Swept, forget_all, sweep
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.pod_links import PodLinkTable, StandingKind
from kproxy_ebpf.observe.health import Health

log = structlog.get_logger(__name__)

PERIOD_SECONDS = 5.0
NO_LINK = 0
CROWDED = 0.9  # the kernel begins to evict a little before a table is full: each CPU keeps free entries back


class Flows:
    """The flows of one generation. All methods raise OSError, and block for as long as a walk through a table takes."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def has_live(self) -> bool:
        """True if any connection still needs the programs."""
        return any(True for family in FAMILIES for _ in live_connections(self._generation, family))

    def forget(self) -> None:
        """Forget all flows, for when no link carries programs.

        Their connections have ended or gone on without programs, and others may have their ports: once there are
        programs again, an old flow would be taken for such a connection's.
        """
        self._generation.retire_kept()
        for family in FAMILIES:
            forget_all(self._generation, family)

    def import_udp(self) -> int:
        """See `host_udp.import_udp`."""
        return host_udp.import_udp(self._generation)

    def forget_unserved_udp(self) -> int:
        """See `host_udp.forget_unserved_udp`."""
        return host_udp.forget_unserved_udp(self._generation)


def crowded(swept: dict[int, Swept]) -> str | None:
    """Names the flow tables that have hardly any room after a sweep; None if all have room."""
    full = [
        f"table {pinned_name('flows', family)} holds {each.left} of {each.limit} entries and forgets the oldest: "
        "raise --max-flows"
        for family, each in swept.items()
        if each.left >= CROWDED * each.limit
    ]
    return "; ".join(full) or None


def sweep_and_settle(generation: Generation, family: int) -> Swept:
    """Sweep, and tell the programs which links have no flows: packets there need no look-up. Raises OSError.

    Imported flows, and those of an earlier version, do not say which link they belong to: while there are any, no link
    is settled. Nor is one while programs of another generation, which read the same links, serve flows of their own.
    """
    with PodLinkTable(generation, family) as table:
        unsettled = table.unsettled(StandingKind.FLOWS)
        swept = sweep(generation, family, unsettled=unsettled.keys() | {NO_LINK})
        if NO_LINK not in swept.links and not generation.has_predecessor:
            table.settle(
                StandingKind.FLOWS, {link: standing for link, standing in unsettled.items() if link not in swept.links}
            )
        return swept


async def keep_room(generation: Generation, health: Health, period_seconds: float = PERIOD_SECONDS) -> None:
    """Sweep for ever. A lack of room is a problem in /healthz while it lasts, and a line in the log when it begins.

    Raises OSError when a table can't be read.
    """
    before: str | None = None
    while True:
        await asyncio.sleep(period_seconds)
        sentence = crowded(
            {family: await asyncio.to_thread(sweep_and_settle, generation, family) for family in FAMILIES}
        )
        health.problem("room", sentence)
        if sentence is not None and before is None:
            log.warning("a table is nearly full", tables=sentence)
        before = sentence
