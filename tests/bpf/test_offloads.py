"""Packets that are still to be segmented (GSO). Partial checksums can't be had in a test run: tests/e2e has them."""

from __future__ import annotations

import struct

import pytest
from harness import FROM_POD, REDIRECT, Datapath
from packets import BACKEND, CLIENT, PORT_UNREACHABLE, VIP, Packet, icmp_error, longest, reset, tcp, udp

from kproxy_ebpf.contract.layouts import BackendState, Verdict

GSO_SIZE_OFFSET, SK_BUFF_BYTES = 176, 192  # of struct __sk_buff
GSO = struct.pack("=I", 1000).rjust(GSO_SIZE_OFFSET + 4, b"\0").ljust(SK_BUFF_BYTES, b"\0")


def run(datapath: Datapath, packet: Packet | bytes) -> tuple[int, bytes]:
    frame = packet if isinstance(packet, bytes) else packet.frame(datapath.family)
    result = datapath.programs[FROM_POD].test_run(frame, GSO)
    return result.retval, result.data


def test_data_is_translated(datapath: Datapath) -> None:
    run(datapath, tcp(CLIENT, VIP, "S"))
    _, data = run(datapath, tcp(CLIENT, VIP, "A", bytes(3000)))
    assert data == tcp(CLIENT, BACKEND, "A", bytes(3000)).frame(datapath.family)


def test_more_than_64_kib_says_a_length_of_zero(datapath: Datapath) -> None:
    frame = tcp(CLIENT, VIP, "S").frame(datapath.family)
    length = {4: 16, 6: 18}[datapath.family]
    before = datapath.count()[Verdict.BALANCED]
    run(datapath, frame[:length] + b"\0\0" + frame[length + 2 :])
    assert datapath.count()[Verdict.BALANCED] == before + 1


@pytest.mark.parametrize("between", [None, longest])
def test_the_answer_to_many_segments_is_one(datapath: Datapath, between) -> None:  # type: ignore[no-untyped-def]
    run(datapath, tcp(CLIENT, VIP, "S"))
    datapath.set_backend(1, state=BackendState.GONE)
    answer = reset(VIP, CLIENT, seq=5)
    data = tcp(CLIENT, VIP, "A", bytes(3000), between, ack=5)
    assert run(datapath, data) == (REDIRECT, answer.frame(datapath.family))

    question = udp(CLIENT, VIP.on(99), bytes(3000), between)
    refused = icmp_error(PORT_UNREACHABLE, VIP.host, CLIENT.host, question, quoted=8).answer()
    assert run(datapath, question) == (REDIRECT, refused.frame(datapath.family))
