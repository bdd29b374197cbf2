"""Datagrams in fragments: what is decided for the first one holds for all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from harness import FROM_POD, SHOT, TO_POD, Datapath, Meanwhile, Step
from nodes import Node, from_link
from packets import (
    BACKEND,
    CLIENT,
    OUTSIDE,
    VIP,
    VIP_B,
    Endpoint,
    Packet,
    echo_request,
    sctp,
    tcp,
    udp,
)
from pieces import Piece, pieces, sent, steps
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN
from scapy.layers.sctp import SCTPChunkData, SCTPChunkInit
from scapy.packet import Raw
from steps import OPENED

from kproxy_ebpf.contract.layouts import Direction, FrontendFlags, Verdict

PLACES = 256  # FRAGMENT_PLACES of bpf_src/fragment/table.h
DATA = bytes(range(256)) + b"the end"
QUESTION, ASKED = udp(CLIENT, VIP, DATA), udp(CLIENT, BACKEND, DATA)
ANSWER, ANSWERED = udp(BACKEND, CLIENT, DATA), udp(VIP, CLIENT, DATA)
REPLY = (Verdict.REVERSED, Verdict.REVERSED)
LEFT = (Verdict.UNTOUCHED, Verdict.UNTOUCHED)


def other(steps: list[Step]) -> list[Step]:
    """The same for a datagram of a flow that is known by now."""
    return [replace(step, verdict=Verdict.TRANSLATED) for step in steps]


def test_in_order_both_ways(datapath: Datapath) -> None:
    answer = steps(TO_POD, pieces(ANSWER), REPLY, pieces(ANSWERED))
    datapath.play(*sent(QUESTION, ASKED), *answer, *other(sent(QUESTION, ASKED, 8)), *answer)


def test_a_large_answer_to_a_small_question(datapath: Datapath) -> None:
    question = Step(FROM_POD, udp(CLIENT, VIP), Verdict.BALANCED, udp(CLIENT, BACKEND))
    datapath.play(question, *steps(TO_POD, pieces(ANSWER), REPLY, pieces(ANSWERED)))


@pytest.mark.parametrize("length", [1473, 4000, 65507])
def test_datagrams_of_any_length(datapath: Datapath, length: int) -> None:
    question, asked = udp(CLIENT, VIP, bytes(length)), udp(CLIENT, BACKEND, bytes(length))
    verdicts = (Verdict.BALANCED, Verdict.TRANSLATED)
    datapath.play(*steps(FROM_POD, pieces(question, 1480), verdicts, pieces(asked, 1480)))


def test_no_checksum_stays_no_checksum(datapath: Datapath) -> None:
    datapath.play(*sent(udp(CLIENT, VIP, DATA, chksum=0), udp(CLIENT, BACKEND, DATA, chksum=0)), has_checksum=False)


def test_tcp(datapath: Datapath) -> None:
    """No Linux sends TCP in fragments. Others do, and routers make them."""
    datapath.play(
        *OPENED,
        *other(sent(tcp(CLIENT, VIP, "A", DATA), tcp(CLIENT, BACKEND, "A", DATA))),
        *steps(TO_POD, pieces(tcp(BACKEND, CLIENT, "A", DATA)), REPLY, pieces(tcp(VIP, CLIENT, "A", DATA))),
    )


def test_sctp_whose_checksum_covers_what_has_not_come_yet(datapath: Datapath) -> None:
    init = SCTPChunkInit(init_tag=1)
    data = SCTPChunkData(data=DATA[:201])
    datapath.play(
        Step(FROM_POD, sctp(CLIENT, VIP, init), Verdict.BALANCED, sctp(CLIENT, BACKEND, init)),
        *other(sent(sctp(CLIENT, VIP, data), sctp(CLIENT, BACKEND, data))),
        *steps(TO_POD, pieces(sctp(BACKEND, CLIENT, data)), REPLY, pieces(sctp(VIP, CLIENT, data))),
    )


def test_a_pod_that_reaches_itself(empty: Datapath) -> None:
    itself = CLIENT.on(8080)
    empty.add_frontend(VIP, [empty.add_backend(1, itself)], "udp")
    arrives = Endpoint(VIP.host, CLIENT.port)
    asked = pieces(udp(arrives, itself, DATA).back())
    answered = pieces(udp(VIP, CLIENT, DATA).back())
    empty.play(
        *steps(FROM_POD, pieces(QUESTION), (Verdict.BALANCED, Verdict.TRANSLATED), asked),
        *steps(FROM_POD, pieces(udp(itself, arrives, DATA)), REPLY, answered),
    )


def test_several_at_once_through_two_vips(datapath: Datapath) -> None:
    questions = ((CLIENT, VIP, 7), (CLIENT.on(40009), VIP_B, 7), (CLIENT.on(40010), VIP, 8))
    one, two, three = (
        sent(udp(source, vip, DATA), udp(source, BACKEND, DATA), number) for source, vip, number in questions
    )
    datapath.play(*(step for together in zip(one, two, three, strict=True) for step in together))


def test_a_tuple_that_is_taken_gets_another_source_port_for_the_first_fragment_only(datapath: Datapath) -> None:
    datapath.play(*sent(QUESTION, ASKED))
    datapath.see(FROM_POD, pieces(udp(CLIENT, VIP_B, DATA))[0].frame(datapath.family))
    port = datapath.flow(CLIENT, VIP_B, FROM_POD, "udp").to.source_port_be
    assert port != CLIENT.port
    moved = udp(CLIENT.on(port), BACKEND, DATA)
    datapath.play(*other(sent(udp(CLIENT, VIP_B, DATA), moved)))


def test_twice_each(datapath: Datapath) -> None:
    once = sent(QUESTION, ASKED)
    datapath.play(*(step for each in zip(once, other(once), strict=True) for step in each))


def test_the_last_one_before_those_between(datapath: Datapath) -> None:
    first, *middle, last = sent(QUESTION, ASKED)
    datapath.play(first, last, *reversed(middle))


def test_an_id_that_is_used_again_at_once(datapath: Datapath) -> None:
    again = udp(CLIENT.on(40009), VIP, DATA), udp(CLIENT.on(40009), BACKEND, DATA)
    datapath.play(*sent(QUESTION, ASKED), *sent(*again))


@pytest.mark.parametrize("hook", [FROM_POD, TO_POD], ids=["from_pod", "to_pod"])
def test_what_is_for_no_service(datapath: Datapath, hook: Direction) -> None:
    packet = udp(CLIENT, OUTSIDE, DATA) if hook == FROM_POD else udp(OUTSIDE, CLIENT, DATA)
    datapath.play(*steps(hook, pieces(packet), LEFT, pieces(packet)))


def ping(destination: Endpoint) -> Packet:
    kinds = {4: ICMP() / Raw(DATA), 6: ICMPv6EchoRequest(data=DATA)}
    return replace(echo_request(CLIENT, destination), payload=kinds.__getitem__)


@pytest.mark.parametrize("destination", [BACKEND, VIP], ids=["to a pod", "to a VIP"])
def test_a_large_ping(datapath: Datapath, destination: Endpoint) -> None:
    packet = ping(destination)
    datapath.play(*sent(QUESTION, ASKED), *steps(FROM_POD, pieces(packet, number=9), LEFT, pieces(packet, number=9)))


def test_a_fragment_without_a_first_one_is_left_to_the_host(datapath: Datapath) -> None:
    datapath.play(Step(FROM_POD, pieces(QUESTION)[1], Verdict.FRAGMENT))


def test_a_fragment_that_comes_too_late(datapath: Datapath) -> None:
    first, second, *_ = sent(QUESTION, ASKED)
    forgotten = replace(second, verdict=Verdict.FRAGMENT, becomes=None)
    datapath.play(first, second, Meanwhile(lambda here: here.age_fragments(3)), forgotten)


# Verdicts


def test_a_datagram_is_refused_once_and_none_of_it_passes(empty: Datapath) -> None:
    empty.add_frontend(VIP, [], "udp")
    first, *later = pieces(QUESTION)
    verdict, result = empty.see(FROM_POD, first.frame(empty.family))
    assert verdict is Verdict.REJECTED_NO_BACKEND
    header = {4: 20, 6: 48}[empty.family]
    quoted = first.frame(empty.family)[14 : 14 + header + 8]
    assert quoted in result.data
    assert result.data.index(quoted) == {4: 14 + 28, 6: 14 + 48}[empty.family]
    assert_dropped(empty, later, Verdict.DROPPED_WITH_FIRST)


def test_a_datagram_that_a_policy_drops(empty: Datapath) -> None:
    empty.add_frontend(VIP, [], "udp", flags=FrontendFlags.DROP)
    first, *later = pieces(QUESTION)
    assert_dropped(empty, [first], Verdict.DROPPED_TRAFFIC_POLICY)
    assert_dropped(empty, later, Verdict.DROPPED_WITH_FIRST)


def test_a_verdict_does_not_change_within_a_datagram(datapath: Datapath) -> None:
    first, *later = sent(QUESTION, ASKED)
    gone = Meanwhile(lambda here: (here.remove_frontend(VIP, "udp"), here.clear_flows()))
    datapath.play(first, gone, *later)


# Attacks


def assert_dropped(datapath: Datapath, these: list[Piece], verdict: Verdict) -> None:
    for piece in these:
        seen, result = datapath.see(FROM_POD, piece.frame(datapath.family))
        assert (seen, result.retval) == (verdict, SHOT)


def test_a_fragment_that_overlaps_the_first_one_ends_the_datagram(datapath: Datapath) -> None:
    """It could give the datagram other ports behind our back (RFC 3128), and RFC 5722 forbids it."""
    first, second, *later = pieces(QUESTION)
    overlapping = replace(second, start=8)
    datapath.play(sent(QUESTION, ASKED)[0])
    assert_dropped(datapath, [overlapping, second, *later, first], Verdict.DROPPED_FRAGMENT)


def test_a_second_first_fragment_with_other_ports_ends_the_datagram(datapath: Datapath) -> None:
    other_first = pieces(udp(CLIENT.on(40009), VIP, DATA))[0]
    datapath.play(sent(QUESTION, ASKED)[0])
    assert_dropped(datapath, [other_first, *pieces(QUESTION)], Verdict.DROPPED_FRAGMENT)


def test_an_end_beyond_what_a_datagram_can_have(datapath: Datapath) -> None:
    datapath.play(sent(QUESTION, ASKED)[0])
    far = replace(pieces(QUESTION)[1], start=64, end=None)
    frame = bytearray(far.frame(datapath.family))
    offset = {4: 14 + 6, 6: 14 + 40 + 2}[datapath.family]
    frame[offset : offset + 2] = (8191 if datapath.family == 4 else 65528).to_bytes(2, "big")
    if datapath.family == 4:
        frame[24:26] = bytes(2)
        total = sum(int.from_bytes(frame[at : at + 2], "big") for at in range(14, 34, 2))
        frame[24:26] = (0xFFFF - (total % 0xFFFF)).to_bytes(2, "big")
    verdict, result = datapath.see(FROM_POD, bytes(frame))
    assert (verdict, result.retval) == (Verdict.DROPPED_FRAGMENT, SHOT)


@pytest.mark.parametrize(
    ("packet", "bytes_"),
    [(tcp(CLIENT, VIP, "S", DATA), 8), (tcp(CLIENT, VIP, "S", DATA), 16), (sctp(CLIENT, VIP, SCTPChunkInit()), 8)],
)
def test_a_first_fragment_without_its_flags(datapath: Datapath, packet: Packet, bytes_: int) -> None:
    """RFC 1858, RFC 7112: they could stand in another fragment, after a verdict without them."""
    first, second, *_ = pieces(packet, bytes_)
    assert_dropped(datapath, [first], Verdict.DROPPED_FRAGMENT)
    assert_dropped(datapath, [second], Verdict.DROPPED_WITH_FIRST)
    assert datapath.flows.count() == 0


def test_a_tiny_first_fragment_for_no_service_is_nobodys_business(datapath: Datapath) -> None:
    tiny = pieces(tcp(CLIENT, OUTSIDE, "S", DATA), 8)
    datapath.play(*steps(FROM_POD, tiny, LEFT, tiny))


def test_a_pod_displaces_datagrams_of_its_own_only(node: Node) -> None:
    """Its link has a share of places; a thousand datagrams that never end do not reach those of another link."""
    datapath = node.datapath
    flood = [pieces(QUESTION, number=1000 + each)[0].frame(datapath.family) for each in range(1000)]
    first, *later = sent(QUESTION, ASKED)
    datapath.play(first)
    for frame in flood:
        datapath.programs[FROM_POD].test_run(frame, from_link(node.server_link))
    assert 200 < datapath.fragments.count() <= PLACES + 1
    datapath.play(*later)


# RFC 8200, 4.5: a fragment header without offset and M makes no fragment.


def options(_: int) -> IPv6ExtHdrDestOpt:
    return IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])


def atomic(_: int) -> IPv6ExtHdrFragment:
    return IPv6ExtHdrFragment(id=99)


def test_atomic_fragments_are_whole_packets(datapath: Datapath) -> None:
    if datapath.family == 4:
        return
    datapath.play(
        Step(FROM_POD, udp(CLIENT, VIP, DATA, atomic), Verdict.BALANCED, udp(CLIENT, BACKEND, DATA, atomic)),
        Step(TO_POD, udp(BACKEND, CLIENT, DATA, atomic), Verdict.REVERSED, udp(VIP, CLIENT, DATA, atomic)),
        Step(FROM_POD, tcp(CLIENT, VIP, "S", b"", atomic), Verdict.BALANCED, tcp(CLIENT, BACKEND, "S", b"", atomic)),
    )
    assert datapath.fragments.count() == 0


def test_options_behind_the_fragment_header(datapath: Datapath) -> None:
    if datapath.family == 4:
        return
    datapath.play(*sent(replace(QUESTION, between=options), replace(ASKED, between=options)))
