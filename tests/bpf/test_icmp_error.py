"""ICMP errors about translated flows: the receiver finds its own connection in the packet that is quoted."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from harness import FROM_POD, TO_POD, Datapath, Meanwhile, Step
from packets import (
    BACKEND,
    CLIENT,
    OUTSIDE,
    PORT_UNREACHABLE,
    ROUTER,
    TIME_EXCEEDED,
    TOO_BIG,
    VIP,
    Between,
    Host,
    IcmpError,
    Packet,
    echo_request,
    icmp_error,
    longest,
    router_alert,
    source_route,
    tcp,
    udp,
    with_checksum_of,
)
from steps import OPENED

from kproxy_ebpf.contract.layouts import Verdict

KINDS = pytest.mark.parametrize("kind", [TOO_BIG, TIME_EXCEEDED, PORT_UNREACHABLE], ids=["size", "time", "port"])
QUOTED = pytest.mark.parametrize("quoted", [8, 20, None])


class Ends(NamedTuple):
    source: Host
    destination: Host


def translated(
    kind: IcmpError, ends: tuple[Ends, Ends], quotes: tuple[Packet, Packet], quoted: int | None = None
) -> tuple[Packet, Packet]:
    """An error before and after translation: its ends, the packet that it quotes, and how much of that packet."""
    before, after = quotes
    return (
        icmp_error(kind, *ends[0], before, quoted),
        icmp_error(kind, *ends[1], with_checksum_of(after, before), quoted),
    )


REQUEST = (tcp(CLIENT, BACKEND, "A", b"data"), tcp(CLIENT, VIP, "A", b"data"))  # as the network saw it, as the client
REPLY = (tcp(VIP, CLIENT, "A", b"data"), tcp(BACKEND, CLIENT, "A", b"data"))  # as the client saw it, as the network
TO_CLIENT = Ends(VIP.host, CLIENT.host)


@KINDS
@QUOTED
def test_about_the_clients_packets(datapath: Datapath, kind: IcmpError, quoted: int | None) -> None:
    """The backend or a router on the way sends the error; to the client it comes from the VIP, as with nf_nat."""
    for sender in (BACKEND.host, ROUTER):
        before, after = translated(kind, (Ends(sender, CLIENT.host), TO_CLIENT), REQUEST, quoted)
        datapath.play(*OPENED, Step(TO_POD, before, Verdict.ICMP_ERROR_TRANSLATED, after))
        datapath.clear_flows()


@KINDS
@QUOTED
def test_about_the_backends_packets(datapath: Datapath, kind: IcmpError, quoted: int | None) -> None:
    """The client pod sends the error to the VIP; it has to reach the backend."""
    before, after = translated(kind, (Ends(CLIENT.host, VIP.host), Ends(CLIENT.host, BACKEND.host)), REPLY, quoted)
    datapath.play(*OPENED, Step(FROM_POD, before, Verdict.ICMP_ERROR_TRANSLATED, after))


@pytest.mark.parametrize("between", [router_alert, longest])
def test_a_quoted_packet_with_options_or_extension_headers(datapath: Datapath, between: Between) -> None:
    quotes = (tcp(CLIENT, BACKEND, "A", b"data", between), tcp(CLIENT, VIP, "A", b"data", between))
    before, after = translated(TOO_BIG, (Ends(ROUTER, CLIENT.host), TO_CLIENT), quotes)
    datapath.play(*OPENED, Step(TO_POD, before, Verdict.ICMP_ERROR_TRANSLATED, after))


def test_udp_is_refused_by_the_backends_pod(datapath: Datapath) -> None:
    quotes = (udp(CLIENT, BACKEND), udp(CLIENT, VIP))
    before, after = translated(PORT_UNREACHABLE, (Ends(BACKEND.host, CLIENT.host), TO_CLIENT), quotes)
    datapath.play(
        Step(FROM_POD, udp(CLIENT, VIP), Verdict.BALANCED, udp(CLIENT, BACKEND)),
        Step(TO_POD, before, Verdict.ICMP_ERROR_TRANSLATED, after),
    )


UNTOUCHED = {
    "no flow": icmp_error(TOO_BIG, ROUTER, CLIENT.host, tcp(CLIENT, OUTSIDE, "A")),
    "the other direction": icmp_error(TOO_BIG, ROUTER, CLIENT.host, tcp(BACKEND, CLIENT, "A")),
    "a quoted echo request": icmp_error(TIME_EXCEEDED, ROUTER, CLIENT.host, echo_request(CLIENT, BACKEND)),
    "not to the sender of what it quotes": icmp_error(TOO_BIG, ROUTER, OUTSIDE.host, REQUEST[0]),
    "ports cut off": icmp_error(TOO_BIG, ROUTER, CLIENT.host, REQUEST[0], quoted=3),
    "no error": echo_request(BACKEND, CLIENT),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_is_left_alone(datapath: Datapath, name: str) -> None:
    datapath.play(*OPENED, Step(TO_POD, UNTOUCHED[name], Verdict.UNTOUCHED))


def test_a_quoted_packet_on_a_source_route_is_left_alone(datapath: Datapath) -> None:
    if datapath.family == 6:
        quoted = tcp(CLIENT, BACKEND, "A", b"data", source_route)
        error = icmp_error(TOO_BIG, ROUTER, CLIENT.host, quoted)
        datapath.play(*OPENED, Step(TO_POD, error, Verdict.UNTOUCHED))


def test_an_expired_flow_is_no_flow(datapath: Datapath) -> None:
    error = icmp_error(TOO_BIG, ROUTER, CLIENT.host, REQUEST[0])
    datapath.play(*OPENED, Meanwhile(lambda dp: dp.age(432001)), Step(TO_POD, error, Verdict.UNTOUCHED))


def test_ports_in_the_padding_are_not_quoted(datapath: Datapath) -> None:
    """The IP packet ends before the ports; they stand in what pads the frame."""
    error = icmp_error(TOO_BIG, ROUTER, CLIENT.host, REQUEST[0], quoted=0).frame(datapath.family)
    ports = CLIENT.port.to_bytes(2, "big") + BACKEND.port.to_bytes(2, "big")
    datapath.play(*OPENED)
    verdict, result = datapath.see(TO_POD, error + ports + bytes(4))
    assert verdict == Verdict.UNTOUCHED
    assert result.data == error + ports + bytes(4)
