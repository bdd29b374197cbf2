"""Keeps room in the flow tables, and says so where that does not help.

A flow table never refuses an entry: full, it forgets others (datapath/sweep.py). An established connection that has
been idle for long may be among them, so it is said while it can still be changed.
"""

from __future__ import annotations

import asyncio

import structlog

from kproxy_ebpf.contract.maps import FAMILIES, pinned_name
from kproxy_ebpf.datapath.flows.sweep import Swept, sweep
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.pod_links import PodLinkTable, StandingKind
from kproxy_ebpf.observe.health import Health

log = structlog.get_logger(__name__)

PERIOD_SECONDS = 5.0
NO_LINK = 0
CROWDED = 0.9  # the kernel begins to evict a little before a table is full: each CPU keeps free entries back


def crowded(swept: dict[int, Swept]) -> str | None:
    """Which families' flow tables have hardly any room after a sweep; None where all have."""
    full = [
        f"table {pinned_name('flows', family)} holds {each.left} of {each.limit} entries and forgets the oldest: "
        "raise --max-flows"
        for family, each in swept.items()
        if each.left >= CROWDED * each.limit
    ]
    return "; ".join(full) or None


def sweep_and_settle(generation: Generation, family: int) -> Swept:
    """Sweep, and tell the programs which links have no flows: packets there need no look-up. Raises OSError.

    While there are flows of links that nobody knows (adopted ones, or of an earlier version), any link may have them;
    and so it may while the programs of another generation, which look at the same links, serve flows of their own.
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
