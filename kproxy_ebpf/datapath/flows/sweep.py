"""Makes room in the flow tables before the kernel has to.

The programs need no collector: an entry past its time-out counts as absent. But a full LRU evicts entries in bursts,
and an entry that was made a moment ago and not looked up since counts as old (kernel/bpf/bpf_lru_list.c): connections
in their handshake would be lost first. So once a table is half full, flows that are surely over are removed here, a
little before their time-out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import cache
from struct import Struct
from typing import NamedTuple

from kproxy_ebpf.contract.layouts import FlowState, layouts
from kproxy_ebpf.datapath.flows.records import TIMEOUTS
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.packing import now_seconds, packer
from kproxy_ebpf.model.services import Protocol

CROWDED_SHARE = 0.5
ONE_SHOT_SECONDS = 2  # a flow that lived no longer was a request and its response

# Idle seconds after which an entry is over while room is wanted: its time-out, or less. TCP that is open stays.
_IDLE_SECONDS: dict[tuple[int, int], int] = {
    **{(protocol, state): seconds for (protocol, state), seconds in TIMEOUTS.items() if protocol != Protocol.TCP},
    (Protocol.TCP, FlowState.NEW): 30,
    (Protocol.TCP, FlowState.CLOSED): 10,
}
_ONE_SHOT_IDLE_SECONDS = 15
_TIME_WAIT_SECONDS = 60  # a client may still have to answer the end of a closed connection once more


class Swept(NamedTuple):
    """How many entries there were, how many of them were removed, and how many fit. `links`: those that have flows."""

    entries: int
    removed: int
    limit: int
    links: frozenset[int] = frozenset()

    @property
    def left(self) -> int:
        return self.entries - self.removed


def is_over(protocol: int, state: int, idle_seconds: int, lived_seconds: int, *, crowded: bool = True) -> bool:
    """True if nothing is lost with an entry last used `idle_seconds` ago, `lived_seconds` after it was made.

    In a table that is not `crowded`, a client keeps its backend for as long as conntrack would let it.
    """
    if crowded and protocol == Protocol.UDP and lived_seconds <= ONE_SHOT_SECONDS:
        return idle_seconds > _ONE_SHOT_IDLE_SECONDS
    limit = _IDLE_SECONDS.get((protocol, state))
    if not crowded and state == FlowState.CLOSED:
        limit = _TIME_WAIT_SECONDS
    return limit is not None and idle_seconds > limit


def sweep(generation: Generation, family: int, share: float = CROWDED_SHARE, unsettled: Collection[int] = ()) -> Swept:
    """Remove flows that are over from one family's table, if more than `share` of it is in use. Raises OSError.

    Otherwise remove only the flows of `unsettled` links (ifindex) that have no others: such a link can be settled, and
    its packets need no look-up.
    """
    with generation.map("flows", family) as flows:
        size, limit, now, part = flows.info.key_size, flows.info.max_entries, now_seconds(), _packer(family)
        links: Counter[int] = Counter()
        over: list[tuple[bytes, int]] = []
        crowded = flows.count() >= share * limit
        for keys, values in flows.chunks():
            for number, (protocol, seen, state, created, ifindex) in enumerate(part.iter_unpack(values)):
                links[ifindex] += 1
                if is_over(protocol, state, now - seen, seen - created, crowded=crowded):
                    over.append((keys[number * size : (number + 1) * size], ifindex))
        entries, removed = links.total(), 0
        busy = links - Counter(ifindex for _, ifindex in over)
        for key, ifindex in over:
            if not crowded and (busy[ifindex] or ifindex not in unsettled):
                continue
            value = flows.lookup(key)
            if value is not None:
                protocol, seen, state, created, _ = part.unpack(value)
                if not is_over(protocol, state, now - seen, seen - created, crowded=crowded):
                    continue  # its port is in use anew
                removed += flows.delete(key)
            links[ifindex] -= 1
        return Swept(entries, removed, limit, frozenset(+links))


def forget_all(generation: Generation, family: int) -> int:
    """Remove all of one family's flows; return how many. Raises OSError."""
    with generation.map("flows", family) as flows:
        return sum(flows.delete(key) for key, _ in flows.items())


@cache
def _packer(family: int) -> Struct:
    names = ("to.protocol", "last_seen_seconds", "state", "created_seconds", "ifindex")
    return packer(layouts(family).Flow, *names)
