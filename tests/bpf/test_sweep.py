"""Flow tables under pressure: what is over makes room, what lives stays."""

from __future__ import annotations

import pytest
from harness import FROM_POD, TO_POD, Datapath, Step
from packets import BACKEND, CLIENT, VIP, tcp
from steps import OPENED, received, sent

from kproxy_ebpf.contract.layouts import FlowState, Verdict
from kproxy_ebpf.datapath.flows.sweep import is_over, sweep
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.model.services import Protocol

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
EVER = 10**6


@pytest.mark.parametrize(
    ("protocol", "state", "stays_until"),
    [
        (TCP, FlowState.NEW, 30),
        (TCP, FlowState.ESTABLISHED, EVER),
        (TCP, FlowState.CLOSING, EVER),
        (TCP, FlowState.CLOSED, 10),
        (SCTP, FlowState.CLOSED, 10),
        (SCTP, FlowState.ESTABLISHED, 210),
        (UDP, FlowState.NEW, 30),
        (UDP, FlowState.ESTABLISHED, 120),
    ],
)
def test_what_is_over(protocol: Protocol, state: FlowState, stays_until: int) -> None:
    assert not is_over(protocol, state, stays_until, lived_seconds=60)
    assert is_over(protocol, state, stays_until + 1, lived_seconds=60) == (stays_until != EVER)


def test_a_question_and_its_answer_are_over_sooner_than_a_session() -> None:
    assert is_over(UDP, FlowState.ESTABLISHED, idle_seconds=16, lived_seconds=1)
    assert not is_over(UDP, FlowState.ESTABLISHED, idle_seconds=16, lived_seconds=3)


def test_established_connections_live_through_a_sweep_and_closed_ones_go(
    datapath: Datapath, generation: Generation
) -> None:
    datapath.play(*OPENED)
    other = CLIENT.on(40999)
    datapath.play(
        Step(FROM_POD, tcp(other, VIP, "S", seq=100), Verdict.BALANCED, tcp(other, BACKEND, "S", seq=100)),
        Step(TO_POD, tcp(BACKEND, other, "RA", ack=101), Verdict.REVERSED, tcp(VIP, other, "RA", ack=101)),
    )
    datapath.age(11)
    assert sweep(generation, datapath.family)[:3] == (4, 0, 1024), "there is room"
    assert sweep(generation, datapath.family, share=0.0)[:3] == (4, 2, 1024)
    datapath.play(sent("A"), received("A"))
    assert datapath.flow(other, VIP, FROM_POD) is None


def test_three_times_the_table_in_short_connections_loses_none_that_begins(
    datapath: Datapath, generation: Generation
) -> None:
    """The table has 1,024 entries. Without the sweep, the kernel evicts entries that were made a moment ago."""
    for first in range(20000, 21536, 64):
        clients = [CLIENT.on(port) for port in range(first, first + 64)]
        for client in clients:
            datapath.run(FROM_POD, tcp(client, VIP, "S", seq=100).frame(datapath.family))
        assert all(datapath.flow(client, VIP, FROM_POD) for client in clients)
        assert all(datapath.flow(BACKEND, client, TO_POD) for client in clients)
        for client in clients:
            datapath.run(TO_POD, tcp(BACKEND, client, "RA", ack=101).frame(datapath.family))
        datapath.age(11)
        sweep(generation, datapath.family)
        assert datapath.flows.count() < 1024 - 2 * 128, "a full table forgets what was made last"
