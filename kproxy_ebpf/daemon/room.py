"""Tables that forget: flows and affinity never refuse an entry, they let go of the one that was used longest ago.

That is said while it can still be changed, since an established connection that has been idle for long may be the one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from kproxy_ebpf.observe.health import Health

log = structlog.get_logger(__name__)

FORGETTING = ("flows", "affinity")
CROWDED = 0.9  # the kernel begins to evict a little before a table is full: each CPU keeps free entries back

Tables = Mapping[str, tuple[int, int]]
"""Entries and limit by the table's pinned name, such as flows_v4."""


def crowded(tables: Tables) -> str | None:
    """Which forgetting tables have hardly any room; None where all have."""
    full = [
        f"table {name} holds {entries} of {limit} entries and forgets the oldest: raise --max-{name.partition('_')[0]}"
        for name, (entries, limit) in sorted(tables.items())
        if name.startswith(FORGETTING) and entries >= CROWDED * limit
    ]
    return "; ".join(full) or None


async def watch_room(read: Callable[[], Tables], health: Health, period_seconds: float) -> None:
    """Look every `period_seconds`, for ever: a problem in /healthz while it lasts, a line in the log when it begins."""
    before: str | None = None
    while True:
        await asyncio.sleep(period_seconds)
        sentence = crowded(await asyncio.to_thread(read))
        health.problem("room", sentence)
        if sentence is not None and before is None:
            log.warning("a table is nearly full", tables=sentence)
        before = sentence
