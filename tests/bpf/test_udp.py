"""UDP through a VIP: requests and replies, and checksums where UDP has rules of its own."""

from __future__ import annotations

import pytest
from harness import FROM_POD, TO_POD, Datapath, Meanwhile, Step
from packets import BACKEND, BACKEND_B, CLIENT, VIP, Between, longest, router_alert, udp
from scapy.layers.inet import UDP

from kproxy_ebpf.contract.layouts import BackendState, FlowState, Switches, Verdict

FIRST = Step(FROM_POD, udp(CLIENT, VIP), Verdict.BALANCED, udp(CLIENT, BACKEND))
REQUEST = Step(FROM_POD, udp(CLIENT, VIP), Verdict.TRANSLATED, udp(CLIENT, BACKEND))
REPLY = Step(TO_POD, udp(BACKEND, CLIENT, b"odd"), Verdict.REVERSED, udp(VIP, CLIENT, b"odd"))
MOVED = Step(FROM_POD, udp(CLIENT, VIP), Verdict.BALANCED, udp(CLIENT, BACKEND_B))


def test_requests_and_replies(datapath: Datapath) -> None:
    datapath.play(FIRST, REQUEST, REPLY, REQUEST, REPLY, REPLY)
    assert datapath.flow(CLIENT, VIP, FROM_POD, "udp").state == FlowState.ESTABLISHED


@pytest.mark.parametrize("between", [router_alert, longest])
def test_options_and_extension_headers_stay(datapath: Datapath, between: Between) -> None:
    to_backend = udp(CLIENT, BACKEND, b"x", between)
    datapath.play(Step(FROM_POD, udp(CLIENT, VIP, b"x", between), Verdict.BALANCED, to_backend))


def test_what_the_host_may_translate_stays_as_it_is(datapath: Datapath) -> None:
    """During an import, datagrams that the host may translate are left to it. Afterwards, new tuples are balanced."""
    stays = Step(FROM_POD, udp(CLIENT, VIP), Verdict.TRANSLATED, udp(CLIENT, VIP))
    datapath.play(
        Meanwhile(lambda here: here.set_live(switches=Switches.TC | Switches.UDP_STAYS)),
        stays,
        Step(TO_POD, udp(VIP, CLIENT, b"odd"), Verdict.REVERSED, udp(VIP, CLIENT, b"odd")),
        Meanwhile(lambda here: here.set_live(switches=Switches.TC)),
        stays,
        Step(FROM_POD, udp(CLIENT.on(1234), VIP), Verdict.BALANCED, udp(CLIENT.on(1234), BACKEND)),
    )


def test_no_checksum_stays_no_checksum(datapath: Datapath) -> None:
    """A checksum of zero means none: in IPv4 (RFC 768), and in IPv6 for tunnels (RFC 6935)."""
    datapath.play(
        Step(FROM_POD, udp(CLIENT, VIP, chksum=0), Verdict.BALANCED, udp(CLIENT, BACKEND, chksum=0)),
        Step(TO_POD, udp(BACKEND, CLIENT, chksum=0), Verdict.REVERSED, udp(VIP, CLIENT, chksum=0)),
        has_checksum=False,
    )


def test_a_checksum_that_comes_out_as_zero_is_sent_as_all_ones(datapath: Datapath) -> None:
    """Zero would mean that there is none (RFC 768). The payload is the complement of all the rest."""
    family = datapath.family
    rest = udp(CLIENT, BACKEND, b"\0\0").network(family)
    payload = rest.__class__(bytes(rest))[UDP].chksum.to_bytes(2, "big")
    becomes = udp(CLIENT, BACKEND, payload)
    assert becomes.frame(family)[-4:] == b"\xff\xff" + payload
    datapath.play(Step(FROM_POD, udp(CLIENT, VIP, payload), Verdict.BALANCED, becomes))


def test_a_wrong_checksum_stays_wrong(datapath: Datapath) -> None:
    """The receiver must notice: translation keeps the difference between the wrong checksum and the right one."""
    right = datapath.see(FROM_POD, udp(CLIENT, VIP).frame(datapath.family))[1].data
    frame = bytearray(udp(CLIENT, VIP).frame(datapath.family))
    checksum = slice(len(frame) - len(b"question") - 2, len(frame) - len(b"question"))
    frame[checksum] = ((int.from_bytes(frame[checksum], "big") + 1) % 0xFFFF).to_bytes(2, "big")
    wrong = datapath.run(FROM_POD, bytes(frame)).data
    distance = int.from_bytes(wrong[checksum], "big") - int.from_bytes(right[checksum], "big")
    assert distance % 0xFFFF == 1


@pytest.mark.parametrize(("story", "seconds"), [((FIRST,), 30), ((FIRST, REPLY), 120)], ids=["unanswered", "answered"])
def test_time_outs(datapath: Datapath, story: tuple[Step, ...], seconds: int) -> None:
    over = Meanwhile(lambda dp: dp.age(seconds + 1))
    late = Step(TO_POD, udp(BACKEND, CLIENT), Verdict.UNTOUCHED)
    datapath.play(*story, Meanwhile(lambda dp: dp.age(seconds - 3)), REQUEST, over, late, FIRST)


STATES: dict[str, tuple[dict[str, int], Step]] = {
    "usable": ({"state": BackendState.USABLE}, REQUEST),
    "keep": ({"state": BackendState.KEEP}, REQUEST),
    "left": ({"state": BackendState.LEFT}, MOVED),
    "gone": ({"state": BackendState.GONE}, MOVED),
    "its id is free": ({"state": BackendState.FREE}, MOVED),
    "its id is another's": ({"state": BackendState.USABLE, "epoch": 2}, MOVED),
    "its id is another Service's": ({"state": BackendState.USABLE, "service_id": 2}, MOVED),
}


@pytest.mark.parametrize("name", STATES)
def test_a_flow_moves_with_the_next_datagram_when_its_backend_has_left(datapath: Datapath, name: str) -> None:
    fields, then = STATES[name]
    datapath.play(FIRST, REPLY)
    datapath.add_frontend(VIP, [datapath.add_backend(2, BACKEND_B)], "udp")
    datapath.set_backend(1, **fields)
    datapath.play(then)


def test_a_deleted_service_ends_its_flows(datapath: Datapath) -> None:
    datapath.play(FIRST, REPLY)
    datapath.remove_frontend(VIP, "udp")
    datapath.set_backend(1, state=BackendState.LEFT)
    datapath.play(Step(FROM_POD, udp(CLIENT, VIP), Verdict.UNTOUCHED))


def test_a_service_that_gets_its_first_backend_answers_a_client_that_was_refused(datapath: Datapath) -> None:
    datapath.add_frontend(VIP, [], "udp")
    verdict, _ = datapath.see(FROM_POD, udp(CLIENT, VIP).frame(datapath.family))
    assert verdict == Verdict.REJECTED_NO_BACKEND
    datapath.add_frontend(VIP, [1], "udp")
    datapath.play(FIRST, REPLY)
