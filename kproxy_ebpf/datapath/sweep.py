"""Room in the flow tables, made before the kernel has to make it.

The programs need no collector: an entry past its time-out counts as absent. But a full LRU lets go of entries in
bursts, and one that was made a moment ago and not looked up since counts as old (kernel/bpf/bpf_lru_list.c):
connections in their handshake would be lost first. So from half full on, what is surely over is removed here, a little
before its time.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from kproxy_ebpf.datapath.contract import FlowState, address_bytes
from kproxy_ebpf.datapath.flows import now_seconds
from kproxy_ebpf.datapath.generation import Generation
from kproxy_ebpf.model.services import Protocol

CROWDED_SHARE = 0.5
ONE_SHOT_SECONDS = 2  # a flow that lived no longer was a question and its answer

# Idle seconds after which an entry is over while room is wanted; what is not listed stays for its whole time-out.
_IDLE_SECONDS: dict[tuple[int, int], int] = {
    (Protocol.TCP, FlowState.NEW): 30,
    (Protocol.TCP, FlowState.CLOSED): 10,
    (Protocol.SCTP, FlowState.NEW): 30,
    (Protocol.SCTP, FlowState.CLOSED): 10,
    (Protocol.SCTP, FlowState.ESTABLISHED): 210,
    (Protocol.UDP, FlowState.NEW): 30,
    (Protocol.UDP, FlowState.ESTABLISHED): 120,
}
_ONE_SHOT_IDLE_SECONDS = 15


class Swept(NamedTuple):
    """How many entries there were, how many of them were removed, and how many there may be."""

    entries: int
    removed: int
    limit: int

    @property
    def left(self) -> int:
        return self.entries - self.removed


def is_over(protocol: int, state: int, idle_seconds: int, lived_seconds: int) -> bool:
    """Whether nothing is lost with an entry last used `idle_seconds` ago, `lived_seconds` after it was made."""
    if protocol == Protocol.UDP and lived_seconds <= ONE_SHOT_SECONDS:
        return idle_seconds > _ONE_SHOT_IDLE_SECONDS
    limit = _IDLE_SECONDS.get((protocol, state))
    return limit is not None and idle_seconds > limit


def sweep(generation: Generation, family: int, share: float = CROWDED_SHARE) -> Swept:
    """Remove what is over from one family's flow table, if more than `share` of it is in use. Raises OSError."""
    with generation.map("flows", family) as flows:
        size, limit, now = flows.info.key_size, flows.info.max_entries, now_seconds()
        part = _part(family)

        def over(value: tuple[int, int, int, int]) -> bool:
            protocol, seen, state, created = value
            return is_over(protocol, state, now - seen, seen - created)

        entries, keys_over = 0, []
        for keys, values in flows.chunks():
            entries += len(keys) // size
            for number, value in enumerate(part.iter_unpack(values)):
                if over(value):
                    keys_over.append(keys[number * size : (number + 1) * size])
        if entries < share * limit:
            return Swept(entries, 0, limit)
        removed = 0
        for key in keys_over:
            value_now = flows.lookup(key)  # its port may have been used anew since
            if value_now is not None and over(part.unpack(value_now)):
                removed += flows.delete(key)
        return Swept(entries, removed, limit)


def _part(family: int) -> Struct:
    """Of struct flow: the protocol in `to`, last_seen_seconds, state, created_seconds."""
    return Struct(f"={2 * address_bytes(family) + 4}xB3x8xI4xB3xII")
