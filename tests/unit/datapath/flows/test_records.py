"""Entries of the flow tables, as records and as bytes; how long they live."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy_ebpf.contract.layouts import TIMEOUT_SECONDS, Direction, FlowFlags, FlowState, layouts
from kproxy_ebpf.contract.scalars import address_bytes
from kproxy_ebpf.datapath.flows.records import TIMEOUTS, flow_record, flow_value, is_live
from kproxy_ebpf.datapath.flows.sweep import is_over
from kproxy_ebpf.datapath.maps.packing import flow_key
from kproxy_ebpf.model.flows import FlowRecord, FlowTuple
from kproxy_ebpf.model.services import Protocol

NOW = 10**6
U16, U32, SECONDS = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, NOW)


@st.composite
def flows(draw: st.DrawFn) -> FlowRecord:
    family = draw(st.sampled_from([4, 6]))
    address = st.binary(min_size=address_bytes(family), max_size=address_bytes(family))
    tuples = st.builds(FlowTuple, address, U16, address, U16, st.sampled_from([*Protocol]), st.sampled_from(Direction))
    states, flags = st.sampled_from(FlowState), st.builds(FlowFlags, st.integers(0, 15))
    return draw(
        st.builds(FlowRecord, st.just(family), tuples, tuples, states, flags, U32, U32, U32, SECONDS, SECONDS, U32)
    )


@given(flows())
def test_an_entry_stands_in_its_layout(flow: FlowRecord) -> None:
    value = flow_value(flow, NOW)
    twin = layouts(flow.family).Flow.from_buffer_copy(value)
    assert bytes(twin.to) == flow_key(flow.family, flow.to)
    assert (twin.state, twin.flags, twin.pad, twin.ifindex) == (flow.state, flow.flags, 0, flow.ifindex)
    assert (twin.backend_id, twin.epoch, twin.service_id) == (flow.backend_id, flow.epoch, flow.service_id)
    assert (twin.last_seen_seconds, twin.created_seconds) == (NOW - flow.idle_seconds, NOW - flow.age_seconds)
    assert flow_record(flow.family, flow_key(flow.family, flow.tuple), value, NOW) == flow


@pytest.mark.parametrize(
    ("protocol", "state", "idle", "alive"),
    [
        (6, FlowState.ESTABLISHED, 400_000, True),
        (6, FlowState.ESTABLISHED, 500_000, False),
        (6, FlowState.CLOSED, 0, False),
        (6, FlowState.CLOSING, 3_700, False),
        (6, FlowState.NEW, 120, True),
        (6, FlowState.NEW, 121, False),
        (132, FlowState.ESTABLISHED, 100, True),
        (132, FlowState.ESTABLISHED, 300, False),
        (132, FlowState.NEW, 31, False),
        (17, FlowState.ESTABLISHED, 100, True),
        (17, FlowState.ESTABLISHED, 300, False),
        (17, FlowState.NEW, 31, False),
    ],
)
def test_a_flow_lives_until_its_time_out(protocol: int, state: FlowState, idle: int, alive: bool) -> None:
    way = FlowTuple(b"\1\1\1\1", 1, b"\2\2\2\2", 2, protocol, Direction.FROM_POD)
    flow = FlowRecord(4, way, way, state, FlowFlags(0), 1, 1, 1, idle_seconds=idle, age_seconds=idle, ifindex=1)
    assert is_live(flow) is alive


def test_every_time_out_is_some_states() -> None:
    assert set(TIMEOUT_SECONDS.values()) == set(TIMEOUTS.values())
    states = {f"{protocol.name}_{state.name}" for protocol in Protocol for state in FlowState}
    assert TIMEOUT_SECONDS.keys() <= states
    assert TIMEOUTS[Protocol.UDP, FlowState.CLOSING] == TIMEOUT_SECONDS["UDP_ESTABLISHED"], "UDP has no such state"


@pytest.mark.parametrize(("protocol", "state"), TIMEOUTS)
def test_a_sweep_waits_for_no_longer_than_the_time_out(protocol: Protocol, state: FlowState) -> None:
    idle = TIMEOUTS[protocol, state] + 1
    is_open = protocol == Protocol.TCP and state in (FlowState.ESTABLISHED, FlowState.CLOSING)
    assert is_over(protocol, state, idle, lived_seconds=60) is not is_open


def test_a_record_is_not_older_than_the_clock() -> None:
    way = FlowTuple(bytes(4), 1, bytes(4), 2, Protocol.TCP, Direction.FROM_POD)
    flow = FlowRecord(4, way, way, FlowState.NEW, FlowFlags(0), 1, 1, 1, idle_seconds=0, age_seconds=0, ifindex=1)
    later = flow_value(flow, NOW + 1)
    assert flow_record(4, flow_key(4, way), later, NOW) == replace(flow, idle_seconds=0, age_seconds=0)
