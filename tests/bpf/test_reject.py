"""Refusals: a TCP RST or an ICMP port unreachable, made of the packet itself, every time."""

from __future__ import annotations

import pytest
from harness import FROM_POD, SHOT, Datapath, Step
from packets import (
    BACKEND,
    CLIENT,
    PORT_UNREACHABLE,
    VIP,
    Between,
    echo_request,
    icmp_error,
    longest,
    reset,
    router_alert,
    sctp,
    tcp,
    udp,
)
from scapy.layers.sctp import SCTPChunkInit

from kproxy_ebpf.contract.layouts import BackendState, FrontendFlags, Verdict

UNDEFINED = VIP.on(81)
BETWEEN: list[Between | None] = [None, router_alert, longest]


@pytest.fixture
def refusing(empty: Datapath) -> Datapath:
    """A VIP whose only port has no backend."""
    for protocol in ("tcp", "udp", "sctp"):
        empty.add_frontend(VIP, [], protocol)
    return empty


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("data", [b"", b"fast open", bytes(1400)], ids=len)
def test_tcp(refusing: Datapath, between: Between | None, data: bytes) -> None:
    syn = tcp(CLIENT, VIP, "S", data, between, seq=2**32 - 1, options=[("MSS", 1460), ("SAckOK", b"")])
    answer = reset(VIP, CLIENT, ack=len(data))  # SYN counts as one: 2^32 - 1 + 1 wraps
    refusing.play(*[Step(FROM_POD, syn, Verdict.REJECTED_NO_BACKEND, answer)] * 3)
    assert refusing.flows.count() == 0


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("data", [b"", b"q", bytes(1400)], ids=len)
def test_udp(refusing: Datapath, between: Between | None, data: bytes) -> None:
    question = udp(CLIENT, VIP, data, between)
    answer = icmp_error(PORT_UNREACHABLE, VIP.host, CLIENT.host, question, quoted=8).answer()
    refusing.play(*[Step(FROM_POD, question, Verdict.REJECTED_NO_BACKEND, answer)] * 3)


def test_sctp(refusing: Datapath) -> None:
    init = sctp(CLIENT, VIP, SCTPChunkInit(init_tag=1))
    answer = icmp_error(PORT_UNREACHABLE, VIP.host, CLIENT.host, init, quoted=12).answer()
    refusing.play(Step(FROM_POD, init, Verdict.REJECTED_NO_BACKEND, answer))


def test_a_port_that_the_service_has_not(datapath: Datapath) -> None:
    question = udp(CLIENT, UNDEFINED)
    unreachable = icmp_error(PORT_UNREACHABLE, VIP.host, CLIENT.host, question, quoted=8).answer()
    verdict = Verdict.REJECTED_UNDEFINED_PORT
    datapath.play(
        Step(FROM_POD, tcp(CLIENT, UNDEFINED, "S", seq=7), verdict, reset(UNDEFINED, CLIENT, ack=8)),
        Step(FROM_POD, question, verdict, unreachable),
        Step(FROM_POD, echo_request(CLIENT, VIP), Verdict.UNTOUCHED),
    )


def test_one_protocols_port_is_not_anothers(empty: Datapath) -> None:
    empty.add_frontend(VIP, [empty.add_backend(1, BACKEND)], "udp")
    answer = reset(VIP, CLIENT, ack=1)
    empty.play(Step(FROM_POD, tcp(CLIENT, VIP, "S"), Verdict.REJECTED_UNDEFINED_PORT, answer))


def test_a_traffic_policy_drops_instead(empty: Datapath) -> None:
    for protocol in ("tcp", "udp"):
        empty.add_frontend(VIP, [], protocol, flags=FrontendFlags.DROP)
    empty.play(
        Step(FROM_POD, tcp(CLIENT, VIP, "S"), Verdict.DROPPED_TRAFFIC_POLICY),
        Step(FROM_POD, udp(CLIENT, VIP), Verdict.DROPPED_TRAFFIC_POLICY),
    )


@pytest.mark.parametrize(
    ("flags", "data", "answer"),
    [
        ("A", b"", reset(VIP, CLIENT, seq=901)),
        ("PA", b"data", reset(VIP, CLIENT, seq=901)),
        ("FA", b"", reset(VIP, CLIENT, seq=901)),
        ("", b"data", reset(VIP, CLIENT, ack=105)),
        ("F", b"data", reset(VIP, CLIENT, ack=106)),
    ],
)
def test_the_numbers_of_a_reset(datapath: Datapath, flags: str, data: bytes, answer) -> None:  # type: ignore[no-untyped-def]
    """RFC 9293, 3.10.7.1: the sender's acknowledgement, else an acknowledgement of all that it sent."""
    segment = tcp(CLIENT, VIP, flags, data, seq=101, ack=901 if "A" in flags else 0)
    datapath.run(FROM_POD, tcp(CLIENT, VIP, "S", seq=100).frame(datapath.family))
    datapath.set_backend(1, state=BackendState.GONE)
    datapath.play(Step(FROM_POD, segment, Verdict.RESET_BACKEND_GONE, answer))


def test_a_reset_is_not_answered(datapath: Datapath) -> None:
    datapath.run(FROM_POD, tcp(CLIENT, VIP, "S").frame(datapath.family))
    datapath.set_backend(1, state=BackendState.GONE)
    verdict, result = datapath.see(FROM_POD, tcp(CLIENT, VIP, "R").frame(datapath.family))
    assert (verdict, result.retval) == (Verdict.RESET_BACKEND_GONE, SHOT)


def test_padding_behind_the_packet_is_not_data(refusing: Datapath) -> None:
    """Frames of less than 60 bytes are padded on the wire; the RST must not acknowledge that."""
    syn = tcp(CLIENT, VIP, "S").frame(refusing.family)
    _, result = refusing.see(FROM_POD, syn + bytes(20))
    assert result.data == reset(VIP, CLIENT, ack=1).frame(refusing.family)
