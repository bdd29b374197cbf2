"""Flows as the commands read them."""

from __future__ import annotations

import pytest
from packets import BACKEND, CLIENT, VIP

from kproxy_ebpf.contract.layouts import Direction, FlowFlags, FlowState, layouts
from kproxy_ebpf.datapath.flows.records import read_flows
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.model.flows import FlowTuple


@pytest.mark.parametrize("family", [4, 6])
def test_flows_are_read_as_the_contract_lays_them_out(generation: Generation, family: int) -> None:
    structures = layouts(family)
    vip, pod, client = (each.host.packed(family) for each in (VIP, BACKEND, CLIENT))
    key = structures.Tuple(source_port_be=40000, destination_port_be=80, protocol=6, direction=Direction.FROM_POD)
    key.source[:], key.destination[:] = client, vip
    to = structures.Tuple(source_port_be=40000, destination_port_be=8080, protocol=6, direction=Direction.TO_POD)
    to.source[:], to.destination[:] = client, pod
    value = structures.Flow(
        to=to, backend_id=3, epoch=9, last_seen_seconds=1, service_id=7, created_seconds=0, state=1, flags=4
    )
    with generation.map("flows", family) as flows:
        flows.update(bytes(key), bytes(value))
        (record,) = read_flows(generation, family)
        flows.delete(bytes(key))
    assert record.tuple == FlowTuple(client, 40000, vip, 80, 6, Direction.FROM_POD)
    assert record.to == FlowTuple(client, 40000, pod, 8080, 6, Direction.TO_POD)
    assert (record.state, record.flags) == (FlowState.ESTABLISHED, FlowFlags.FIN_CLIENT)
    assert (record.backend_id, record.epoch, record.service_id) == (3, 9, 7)
    assert record.age_seconds == record.idle_seconds + 1
