"""What is not for the programs leaves as it came."""

from __future__ import annotations

import pytest
from harness import FROM_POD, NEXT, TO_POD, Datapath, Meanwhile, Step
from packets import BACKEND, CLIENT, HOST_MAC, POD_MAC, VIP, echo_request, source_route, tcp, udp
from scapy.layers.l2 import ARP, Dot1Q, Ether

from kproxy_ebpf.contract.layouts import Direction, Switches, Verdict

BOTH_HOOKS = pytest.mark.parametrize("hook", [FROM_POD, TO_POD], ids=["from_pod", "to_pod"])


def test_a_source_route_on_its_way(datapath: Datapath) -> None:
    """The header names an intermediate destination, while the checksum counts the final one (RFC 8200, 8.1)."""
    if datapath.family == 6:
        datapath.play(Step(FROM_POD, tcp(CLIENT, VIP, "S", b"", source_route), Verdict.UNTOUCHED))


def test_a_ping_to_a_vip(datapath: Datapath) -> None:
    datapath.play(Step(FROM_POD, echo_request(CLIENT, VIP), Verdict.UNTOUCHED))


def other_frames(family: int) -> dict[str, bytes]:
    ours = Ether(tcp(CLIENT, VIP, "S").frame(family))
    return {
        "the other family": tcp(CLIENT, VIP, "S").frame(10 - family),
        "VLAN": bytes(Ether(src=POD_MAC, dst=HOST_MAC) / Dot1Q(vlan=5) / ours.payload),
        "ARP": bytes(Ether(src=POD_MAC, dst=HOST_MAC) / ARP()),
        "802.3": bytes(Ether(src=POD_MAC, dst=HOST_MAC, type=60) / bytes(60)),
    }


@BOTH_HOOKS
@pytest.mark.parametrize("name", other_frames(4))
def test_other_frames_are_not_even_counted(datapath: Datapath, hook: Direction, name: str) -> None:
    frame, before = other_frames(datapath.family)[name], datapath.count()
    result = datapath.run(hook, frame)
    assert (result.retval, result.data) == (NEXT, frame)
    assert datapath.count() == before


def lying(family: int) -> dict[str, bytes]:
    """A SYN and a datagram to the VIP whose headers lie: name -> frame."""
    syn, datagram = tcp(CLIENT, VIP, "S").frame(family), udp(CLIENT, VIP).frame(family)
    transport = {4: 34, 6: 54}[family]
    length = {4: 16, 6: 18}[family]

    def with_bytes(frame: bytes, offset: int, value: bytes) -> bytes:
        return frame[:offset] + value + frame[offset + len(value) :]

    cases = {
        "TCP cut short": syn[: transport + 19],
        "UDP cut short": datagram[: transport + 7],
        "longer than the frame": with_bytes(syn, length, b"\x05\xdc"),
        "too short for TCP": with_bytes(syn, length, (39 if family == 4 else 19).to_bytes(2, "big")),
        "another IP version": with_bytes(syn, 14, b"\x55"),
        "TCP header shorter than it can be": with_bytes(syn, transport + 12, b"\x40"),
        "TCP header longer than the packet": with_bytes(syn, transport + 12, b"\xf0"),
        "UDP length shorter than its header": with_bytes(datagram, transport + 4, b"\x00\x07"),
        "UDP length longer than the packet": with_bytes(datagram, transport + 4, b"\x00\xff"),
    }
    if family == 4:
        cases |= {"header of 4 words": with_bytes(syn, 14, b"\x44"), "header of 15": with_bytes(syn, 14, b"\x4f")}
    return cases


@pytest.mark.parametrize("name", lying(4))
def test_lengths_that_lie(datapath: Datapath, name: str) -> None:
    frame = lying(datapath.family).get(name)
    if frame is None:
        return
    verdict, result = datapath.see(FROM_POD, frame)
    assert (verdict, result.retval, result.data) == (Verdict.MALFORMED, NEXT, frame)


def test_no_length_is_no_licence(datapath: Datapath) -> None:
    """Zero means a packet of more than 64 KiB (BIG TCP), and only if the packet is still to be segmented."""
    frame = tcp(CLIENT, VIP, "S").frame(datapath.family)
    offset = {4: 16, 6: 18}[datapath.family]
    frame = frame[:offset] + b"\0\0" + frame[offset + 2 :]
    assert datapath.see(FROM_POD, frame)[0] == Verdict.MALFORMED


def test_switched_off_only_flows_that_exist_go_on(datapath: Datapath) -> None:
    """With mode off or socket, open connections stay with the programs and new ones go to the host."""
    datapath.play(
        Step(FROM_POD, tcp(CLIENT, VIP, "S"), Verdict.BALANCED, tcp(CLIENT, BACKEND, "S")),
        Step(FROM_POD, udp(CLIENT, VIP), Verdict.BALANCED, udp(CLIENT, BACKEND)),
        Meanwhile(lambda here: here.set_live(switches=Switches(0))),
        Step(FROM_POD, tcp(CLIENT, VIP, "A"), Verdict.TRANSLATED, tcp(CLIENT, BACKEND, "A")),
        Step(FROM_POD, udp(CLIENT, VIP), Verdict.TRANSLATED, udp(CLIENT, BACKEND)),
        Step(FROM_POD, tcp(CLIENT.on(1234), VIP, "S"), Verdict.UNTOUCHED),
        Step(FROM_POD, udp(CLIENT.on(1234), VIP), Verdict.UNTOUCHED),
        Step(FROM_POD, tcp(CLIENT.on(1234), VIP.on(81), "S"), Verdict.UNTOUCHED),
    )
