"""The flow tables' entries as records, for the `flows` and `trace` commands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from struct import Struct

from kproxy_ebpf.contract.layouts import TIMEOUT_SECONDS, FlowFlags, FlowState, layouts
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.packing import TUPLE, codec, flow_tuple, now_seconds, packer, tuple_fields
from kproxy_ebpf.model.flows import FlowRecord
from kproxy_ebpf.model.services import Protocol

TIMEOUTS: dict[tuple[int, int], int] = {
    (protocol, state): TIMEOUT_SECONDS.get(
        f"{protocol.name}_{state.name}", TIMEOUT_SECONDS[f"{protocol.name}_ESTABLISHED"]
    )
    for protocol, state in product(Protocol, FlowState)
}

"""By protocol and state, the idle seconds up to which the programs know a flow."""


@cache
def _packer(family: int) -> Struct:
    others = ("backend_id", "epoch", "last_seen_seconds", "service_id", "state", "flags", "created_seconds", "ifindex")
    return packer(layouts(family).Flow, *(f"to.{name}" for name in TUPLE), *others)


def read_flows(generation: Generation, family: int) -> Iterator[FlowRecord]:
    """All entries of one family's flow table, read in batches while the programs go on writing. Raises OSError."""
    with generation.map("flows", family) as flows:
        now = now_seconds()
        for key, value in flows.items():
            yield flow_record(family, key, value, now)


def live_connections(generation: Generation, family: int) -> Iterator[FlowRecord]:
    """The client's entry of each connection that may still have packets. Raises OSError."""
    return (flow for flow in read_flows(generation, family) if not flow.flags & FlowFlags.REPLY and is_live(flow))


def is_live(flow: FlowRecord) -> bool:
    """True while a packet may still come: until the flow has been idle for longer than the programs' own time-out."""
    return flow.state is not FlowState.CLOSED and flow.idle_seconds <= TIMEOUTS[flow.tuple.protocol, flow.state]


def flow_record(family: int, key: bytes, value: bytes, now: int) -> FlowRecord:
    """One packed entry; `now` by `now_seconds`."""
    fields = _packer(family).unpack(value)
    backend_id, epoch, seen, service_id, state, flags, created, ifindex = fields[len(TUPLE) :]
    return FlowRecord(
        family=family,
        tuple=flow_tuple(*codec(family).flow_key.unpack(key)),
        to=flow_tuple(*fields[: len(TUPLE)]),
        state=FlowState(state),
        flags=FlowFlags(flags),
        backend_id=backend_id,
        epoch=epoch,
        service_id=service_id,
        idle_seconds=max(now - seen, 0),
        age_seconds=max(now - created, 0),
        ifindex=ifindex,
    )


def flow_value(flow: FlowRecord, now: int) -> bytes:
    """The packed entry; `now` by `now_seconds`."""
    numbers = (flow.backend_id, flow.epoch, now - flow.idle_seconds, flow.service_id, flow.state, flow.flags)
    return _packer(flow.family).pack(*tuple_fields(flow.to), *numbers, now - flow.age_seconds, flow.ifindex)
