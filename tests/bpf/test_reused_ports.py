"""What is left of a connection must not be taken for a part of the next one that has the same ports."""

from __future__ import annotations

import pytest
from harness import FROM_POD, TO_POD, Datapath, Meanwhile, Step
from packets import BACKEND, CLIENT, VIP, VIP_B, Endpoint, tcp, udp
from scapy.layers.l2 import Ether
from steps import CLOSED, OPENED, SYN, SYN_ACK, received, sent

from kproxy_ebpf.contract.layouts import BackendState, FlowFlags, FlowState, Switches, Verdict

OFF = Meanwhile(lambda dp: dp.set_live(switches=0))
ON = Meanwhile(lambda dp: dp.set_live(switches=Switches.TC))
LATER = Meanwhile(lambda dp: dp.age(2))  # a packet writes the time again


def untouched(client: Endpoint, server: Endpoint) -> tuple[Step, ...]:
    """A TCP connection that is for nobody here, with data both ways."""
    return (
        Step(FROM_POD, tcp(client, server, "S"), Verdict.UNTOUCHED),
        Step(TO_POD, tcp(server, client, "SA"), Verdict.UNTOUCHED),
        Step(FROM_POD, tcp(client, server, "A"), Verdict.MIDSTREAM),
        Step(FROM_POD, tcp(client, server, "PA", b"to"), Verdict.MIDSTREAM),
        Step(TO_POD, tcp(server, client, "PA", b"fro"), Verdict.UNTOUCHED),
    )


def beside(datapath: Datapath, protocol: str) -> Endpoint:
    """Begin a direct connection from the port of one through the VIP: it becomes a flow, from the port returned."""
    packet = tcp(CLIENT, BACKEND, "S") if protocol == "tcp" else udp(CLIENT, BACKEND)
    verdict, result = datapath.see(FROM_POD, packet.frame(datapath.family))
    assert verdict == Verdict.TRANSLATED
    return CLIENT.on(Ether(result.data)[protocol.upper()].sport)


def states(datapath: Datapath) -> set[FlowState]:
    """The states of both entries of the connection through the VIP."""
    flows = datapath.flow(CLIENT, VIP, FROM_POD), datapath.flow(BACKEND, CLIENT, TO_POD)
    return {FlowState(flow.state) for flow in flows}


# A first packet that passes takes what stands at its own key away.


def test_a_direct_connection_after_a_direct_one_that_was_a_flow(datapath: Datapath) -> None:
    datapath.play(*OPENED)
    own = beside(datapath, "tcp")
    datapath.play(
        Step(TO_POD, tcp(BACKEND, own, "SA"), Verdict.REVERSED, tcp(BACKEND, CLIENT, "SA")),
        Step(FROM_POD, tcp(CLIENT, BACKEND, "R"), Verdict.TRANSLATED, tcp(own, BACKEND, "R")),
        sent("R"),
        *untouched(CLIENT, BACKEND),
    )
    assert datapath.flow(CLIENT, BACKEND, FROM_POD) is None
    assert datapath.flow(BACKEND, own, TO_POD) is None


def test_the_same_for_datagrams(datapath: Datapath) -> None:
    datapath.play(Step(FROM_POD, udp(CLIENT, VIP), Verdict.BALANCED, udp(CLIENT, BACKEND)))
    own = beside(datapath, "udp")
    datapath.age(31)
    datapath.play(
        Step(FROM_POD, udp(CLIENT, BACKEND), Verdict.UNTOUCHED),
        Step(TO_POD, udp(BACKEND, CLIENT), Verdict.UNTOUCHED),
    )
    assert datapath.flow(CLIENT, BACKEND, FROM_POD, "udp") is None
    assert datapath.flow(BACKEND, own, TO_POD, "udp") is None


def test_switched_off_a_port_is_kube_proxys_from_the_first_packet_to_the_last(datapath: Datapath) -> None:
    late = Step(TO_POD, tcp(BACKEND, CLIENT, "FA"), Verdict.UNTOUCHED)
    datapath.play(*CLOSED, OFF, *untouched(CLIENT, VIP), late, *untouched(CLIENT, VIP))
    assert datapath.flows.count() == 0


def test_a_client_that_forgot_an_open_connection_to_a_service_that_is_gone(datapath: Datapath) -> None:
    datapath.play(*OPENED)
    datapath.remove_frontend(VIP)
    datapath.set_backend(1, state=BackendState.LEFT)
    late = Step(TO_POD, tcp(BACKEND, CLIENT, "A"), Verdict.UNTOUCHED)
    datapath.play(*untouched(CLIENT, VIP), LATER, late, *untouched(CLIENT, VIP))
    assert datapath.flows.count() == 0


def test_what_another_connection_has_at_the_replys_key_stays(datapath: Datapath) -> None:
    """A connection through the other VIP to the same backend: its reply entry has replaced the closed one's."""
    datapath.play(
        *CLOSED,
        Step(FROM_POD, tcp(CLIENT, VIP_B, "S"), Verdict.BALANCED, tcp(CLIENT, BACKEND, "S")),
        OFF,
        Step(FROM_POD, tcp(CLIENT, VIP, "S"), Verdict.UNTOUCHED),
        Step(FROM_POD, tcp(CLIENT, VIP, "A"), Verdict.MIDSTREAM),
        Step(TO_POD, tcp(BACKEND, CLIENT, "SA"), Verdict.REVERSED, tcp(VIP_B, CLIENT, "SA")),
        Step(FROM_POD, tcp(CLIENT, VIP_B, "A"), Verdict.TRANSLATED, tcp(CLIENT, BACKEND, "A")),
    )


def test_a_backend_that_connects_to_the_port_of_its_former_client(datapath: Datapath) -> None:
    datapath.play(
        *CLOSED,
        Step(TO_POD, tcp(BACKEND, CLIENT, "S"), Verdict.UNTOUCHED),
        Step(FROM_POD, tcp(CLIENT, BACKEND, "SA"), Verdict.MIDSTREAM),
        Step(TO_POD, tcp(BACKEND, CLIENT, "A"), Verdict.UNTOUCHED),
    )
    assert datapath.flows.count() == 0


# CLOSED is final.


@pytest.mark.parametrize(
    ("source", "destination", "hook"), [(CLIENT, VIP, FROM_POD), (BACKEND, CLIENT, TO_POD)], ids=["forward", "reply"]
)
def test_a_late_packet_brings_no_half_of_a_closed_flow_back(datapath: Datapath, source, destination, hook) -> None:  # type: ignore[no-untyped-def]
    datapath.play(*CLOSED)
    datapath.lose_flow(source, destination, hook)
    datapath.play(LATER, received("FA") if hook == FROM_POD else sent("A"))
    assert datapath.flow(source, destination, hook) is None


def test_the_packet_that_closes_brings_the_other_half_back(datapath: Datapath) -> None:
    """The packets after it, an ACK or a retransmission, still have to be translated."""
    datapath.play(*OPENED, sent("FA"), Meanwhile(lambda dp: dp.lose_flow(CLIENT, VIP, FROM_POD)), received("FA"))
    assert states(datapath) == {FlowState.CLOSED}
    datapath.play(sent("A"))


@pytest.mark.parametrize("closed", [(received("R"),), (sent("FA"), received("FA"))], ids=["reset", "both FINs"])
@pytest.mark.parametrize(
    "late", [sent("FA"), received("FA"), sent("PA", b"data"), received("PA", b"data"), received("SA"), received("R")]
)
def test_nothing_opens_a_closed_flow(datapath: Datapath, closed: tuple[Step, ...], late: Step) -> None:
    datapath.play(*OPENED, *closed, LATER, late, LATER, late)
    assert states(datapath) == {FlowState.CLOSED}


# A SYN that waits for its answer hears what is left of the connection before.


@pytest.mark.parametrize("late", [received("R"), received("FA"), sent("R")])
def test_what_is_no_answer_to_a_syn_ends_no_flow(datapath: Datapath, late: Step) -> None:
    datapath.play(SYN, late)
    assert states(datapath) == {FlowState.NEW}
    datapath.play(SYN_ACK)
    assert states(datapath) == {FlowState.ESTABLISHED}
    assert datapath.flow(CLIENT, VIP, FROM_POD).flags == 0
    assert datapath.flow(BACKEND, CLIENT, TO_POD).flags == FlowFlags.REPLY


def test_a_refusal_answers_a_syn(datapath: Datapath) -> None:
    datapath.play(SYN, received("RA"))
    assert states(datapath) == {FlowState.CLOSED}


def test_a_refused_port_may_be_tried_again_both_ways(datapath: Datapath) -> None:
    datapath.play(SYN, received("RA"), OFF, *untouched(CLIENT, VIP), ON, SYN, SYN_ACK)
