"""Connections that would collide after translation, pods that reach themselves, and SCTP."""

from __future__ import annotations

import pytest
from harness import FROM_POD, TO_POD, Datapath, Meanwhile, Step
from packets import (
    BACKEND,
    CLIENT,
    PORT_UNREACHABLE,
    VIP,
    VIP_B,
    Endpoint,
    icmp_error,
    sctp,
    tcp,
    udp,
    with_checksum_of,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTPChunkAbort, SCTPChunkData, SCTPChunkInit, SCTPChunkInitAck

from kproxy_ebpf.contract.layouts import FlowFlags, FlowState, Verdict

FIRST = Step(FROM_POD, tcp(CLIENT, VIP, "S"), Verdict.BALANCED, tcp(CLIENT, BACKEND, "S"))
FIRST_ANSWER = Step(TO_POD, tcp(BACKEND, CLIENT, "SA"), Verdict.REVERSED, tcp(VIP, CLIENT, "SA"))


def second(datapath: Datapath, protocol: str = "tcp") -> Endpoint:
    """Connect from the client's same port to the other VIP; returns the source that the backend sees."""
    packet = (tcp(CLIENT, VIP_B, "S") if protocol == "tcp" else udp(CLIENT, VIP_B)).frame(datapath.family)
    verdict, result = datapath.see(FROM_POD, packet)
    assert verdict == Verdict.BALANCED
    return CLIENT.on(Ether(result.data)[protocol.upper()].sport)


def test_one_backend_behind_two_vips_from_one_client_port(datapath: Datapath) -> None:
    datapath.play(FIRST)
    port = second(datapath)
    assert 16384 <= port.port < 32768
    assert port != CLIENT
    datapath.play(
        Step(FROM_POD, tcp(CLIENT, VIP_B, "S"), Verdict.TRANSLATED, tcp(port, BACKEND, "S")),
        Step(TO_POD, tcp(BACKEND, port, "SA"), Verdict.REVERSED, tcp(VIP_B, CLIENT, "SA")),
        Step(TO_POD, tcp(BACKEND, CLIENT, "SA"), Verdict.REVERSED, tcp(VIP, CLIENT, "SA")),
        Step(FROM_POD, tcp(CLIENT, VIP, "A"), Verdict.TRANSLATED, tcp(CLIENT, BACKEND, "A")),
        Step(FROM_POD, tcp(CLIENT, VIP_B, "A", b"x"), Verdict.TRANSLATED, tcp(port, BACKEND, "A", b"x")),
    )


def test_the_same_for_udp(datapath: Datapath) -> None:
    datapath.play(Step(FROM_POD, udp(CLIENT, VIP), Verdict.BALANCED, udp(CLIENT, BACKEND)))
    port = second(datapath, "udp")
    assert port != CLIENT
    datapath.play(
        Step(TO_POD, udp(BACKEND, port), Verdict.REVERSED, udp(VIP_B, CLIENT)),
        Step(TO_POD, udp(BACKEND, CLIENT), Verdict.REVERSED, udp(VIP, CLIENT)),
    )


def test_an_error_about_another_source_port_names_the_clients_own(datapath: Datapath) -> None:
    datapath.play(Step(FROM_POD, udp(CLIENT, VIP), Verdict.BALANCED, udp(CLIENT, BACKEND)))
    before = udp(second(datapath, "udp"), BACKEND)
    after = with_checksum_of(udp(CLIENT, VIP_B), before)
    datapath.play(
        Step(
            TO_POD,
            icmp_error(PORT_UNREACHABLE, BACKEND.host, CLIENT.host, before),
            Verdict.ICMP_ERROR_TRANSLATED,
            icmp_error(PORT_UNREACHABLE, VIP_B.host, CLIENT.host, after),
        )
    )


def test_different_backends_do_not_collide(datapath: Datapath) -> None:
    datapath.play(FIRST)
    datapath.add_frontend(VIP_B, [datapath.add_backend(2, BACKEND.on(8081))])
    assert second(datapath) == CLIENT


@pytest.mark.parametrize("over", ["closed", "expired"])
def test_a_connection_that_is_over_does_not_hold_its_port(datapath: Datapath, over: str) -> None:
    datapath.play(FIRST, FIRST_ANSWER)
    if over == "closed":
        datapath.run(TO_POD, tcp(BACKEND, CLIENT, "R").frame(datapath.family))
    else:
        datapath.age(432001)
    assert second(datapath) == CLIENT
    # What is left of the first may not touch the second, whose reply now stands where the first one's did.
    datapath.run(FROM_POD, tcp(CLIENT, VIP, "R").frame(datapath.family))
    assert datapath.flow(BACKEND, CLIENT, TO_POD).state == FlowState.NEW


def test_a_connection_does_not_collide_with_what_is_left_of_itself(datapath: Datapath) -> None:
    lose = Meanwhile(lambda dp: dp.lose_flow(CLIENT, VIP, FROM_POD))
    datapath.play(FIRST, lose, FIRST, FIRST_ANSWER)


# A pod that reaches itself: its own address as the source would be a martian, so the backend sees the VIP.

SELF = BACKEND.on(40000)
SELF_AS_VIP = VIP.on(40000)


def test_a_pod_reaches_itself(datapath: Datapath) -> None:
    to, answer = tcp(SELF_AS_VIP, BACKEND, "S").back(), tcp(VIP, SELF, "SA").back()
    data = tcp(SELF_AS_VIP, BACKEND, "PA", b"data").back()
    datapath.play(
        Step(FROM_POD, tcp(SELF, VIP, "S"), Verdict.BALANCED, to),
        Step(TO_POD, tcp(SELF_AS_VIP, BACKEND, "S"), Verdict.UNTOUCHED),  # the redirected packet at the other hook
        Step(FROM_POD, tcp(BACKEND, SELF_AS_VIP, "SA"), Verdict.REVERSED, answer),
        Step(TO_POD, tcp(VIP, SELF, "SA"), Verdict.UNTOUCHED),
        Step(FROM_POD, tcp(SELF, VIP, "PA", b"data"), Verdict.TRANSLATED, data),
    )
    flow = datapath.flow(SELF, VIP, FROM_POD)
    assert (flow.state, flow.flags) == (FlowState.ESTABLISHED, FlowFlags.HAIRPIN)


def test_a_pod_refuses_itself(datapath: Datapath) -> None:
    """Nothing listens there: the pod's ICMP error about its own datagram comes back to it."""
    before, after = udp(SELF_AS_VIP, BACKEND), udp(SELF, VIP)
    error = icmp_error(PORT_UNREACHABLE, BACKEND.host, VIP.host, before)
    becomes = icmp_error(PORT_UNREACHABLE, VIP.host, BACKEND.host, with_checksum_of(after, before)).back()
    datapath.play(
        Step(FROM_POD, after, Verdict.BALANCED, before.back()),
        Step(FROM_POD, error, Verdict.ICMP_ERROR_TRANSLATED, becomes),
    )


def test_either_half_of_a_hairpin_comes_back(datapath: Datapath) -> None:
    request = Step(FROM_POD, tcp(SELF, VIP, "A"), Verdict.TRANSLATED, tcp(SELF_AS_VIP, BACKEND, "A").back())
    answer = Step(FROM_POD, tcp(BACKEND, SELF_AS_VIP, "A"), Verdict.REVERSED, tcp(VIP, SELF, "A").back())
    opened = Step(FROM_POD, tcp(SELF, VIP, "S"), Verdict.BALANCED, tcp(SELF_AS_VIP, BACKEND, "S").back())
    datapath.play(opened, answer, request)
    for lost, other in (((SELF, VIP), answer), ((BACKEND, SELF_AS_VIP), request)):
        datapath.lose_flow(*lost, FROM_POD)
        datapath.play(Meanwhile(lambda dp: dp.age(2)), other, request, answer)


# SCTP: the checksum is a CRC over the ports and everything behind them.


def test_an_sctp_association(datapath: Datapath) -> None:
    init, data, abort = SCTPChunkInit(init_tag=1), SCTPChunkData(data=b"some data", tsn=1), SCTPChunkAbort()
    ack = SCTPChunkInitAck(init_tag=2)
    datapath.play(
        Step(FROM_POD, sctp(CLIENT, VIP, data), Verdict.MIDSTREAM),
        Step(FROM_POD, sctp(CLIENT, VIP, init), Verdict.BALANCED, sctp(CLIENT, BACKEND, init)),
        Step(TO_POD, sctp(BACKEND, CLIENT, ack), Verdict.REVERSED, sctp(VIP, CLIENT, ack)),
        Step(FROM_POD, sctp(CLIENT, VIP, data), Verdict.TRANSLATED, sctp(CLIENT, BACKEND, data)),
        Step(TO_POD, sctp(BACKEND, CLIENT, data), Verdict.REVERSED, sctp(VIP, CLIENT, data)),
        Step(TO_POD, sctp(BACKEND, CLIENT, abort), Verdict.REVERSED, sctp(VIP, CLIENT, abort)),
    )
    assert datapath.flow(CLIENT, VIP, FROM_POD, "sctp").state == FlowState.CLOSED


@pytest.mark.parametrize("size", [1, 100, 1400, 3000])
def test_sctp_checksums_of_any_length(datapath: Datapath, size: int) -> None:
    """3000 bytes: a test run takes no more than a page."""
    data = SCTPChunkData(data=bytes(range(256)) * (size // 256 + 1), tsn=1)
    init = SCTPChunkInit(init_tag=1)
    datapath.play(
        Step(FROM_POD, sctp(CLIENT, VIP, init), Verdict.BALANCED, sctp(CLIENT, BACKEND, init)),
        Step(FROM_POD, sctp(CLIENT, VIP, data), Verdict.TRANSLATED, sctp(CLIENT, BACKEND, data)),
    )
