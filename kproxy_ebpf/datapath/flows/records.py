"""The flow tables' entries as records, for the `flows` and `trace` commands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from struct import Struct

from kproxy_ebpf.contract.layouts import Direction, FlowFlags, FlowState
from kproxy_ebpf.contract.scalars import address_bytes
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.model.flows import FlowRecord, FlowTuple
from kproxy_ebpf.model.services import Protocol


@cache
def _tuple_struct(family: int) -> Struct:
    size = address_bytes(family)
    return Struct(f"={size}s{size}s2s2sBBxx")


_REST = Struct("=IIIIBBxxII")

_ESTABLISHED_SECONDS = 432_000
_CLOSING_SECONDS = 3_600
_UDP_NEW_SECONDS = 30
_UDP_SECONDS = 120
_OTHER_SECONDS = 210


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
    """True while a packet may still come: until the flow has been idle for at least the programs' own time-out."""
    if flow.state is FlowState.CLOSED:
        return False
    if flow.tuple.protocol == Protocol.UDP:
        return flow.idle_seconds <= (_UDP_NEW_SECONDS if flow.state is FlowState.NEW else _UDP_SECONDS)
    if flow.tuple.protocol != Protocol.TCP or flow.state is FlowState.NEW:
        return flow.idle_seconds <= _OTHER_SECONDS
    return flow.idle_seconds <= (_CLOSING_SECONDS if flow.state is FlowState.CLOSING else _ESTABLISHED_SECONDS)


def now_seconds() -> int:
    """The programs' clock."""
    return int(time.clock_gettime(time.CLOCK_MONOTONIC))


def flow_record(family: int, key: bytes, value: bytes, now: int) -> FlowRecord:
    """One packed entry; `now` by `now_seconds`."""
    numbers = _REST.unpack_from(value, _tuple_struct(family).size)
    backend_id, epoch, seen, service_id, state, flags, created, ifindex = numbers
    return FlowRecord(
        family=family,
        tuple=_tuple(family, key),
        to=_tuple(family, value),
        state=FlowState(state),
        flags=FlowFlags(flags),
        backend_id=backend_id,
        epoch=epoch,
        service_id=service_id,
        idle_seconds=max(now - seen, 0),
        age_seconds=max(now - created, 0),
        ifindex=ifindex,
    )


def flow_key(family: int, tuple_: FlowTuple) -> bytes:
    """The packed key of the entry for packets of `tuple_`."""
    ports = (number.to_bytes(2, "big") for number in (tuple_.source_port, tuple_.destination_port))
    return _tuple_struct(family).pack(tuple_.source, tuple_.destination, *ports, tuple_.protocol, tuple_.direction)


def flow_value(flow: FlowRecord, now: int) -> bytes:
    """The packed entry; `now` by `now_seconds`."""
    numbers = (flow.backend_id, flow.epoch, now - flow.idle_seconds, flow.service_id, flow.state, flow.flags)
    return flow_key(flow.family, flow.to) + _REST.pack(*numbers, now - flow.age_seconds, flow.ifindex)


def _tuple(family: int, data: bytes) -> FlowTuple:
    source, destination, source_port, destination_port, protocol, direction = _tuple_struct(family).unpack_from(data)
    return FlowTuple(
        source,
        int.from_bytes(source_port, "big"),
        destination,
        int.from_bytes(destination_port, "big"),
        protocol,
        Direction(direction),
    )
