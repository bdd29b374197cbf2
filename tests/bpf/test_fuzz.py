"""Random and mutated packets. Only what NAT may change changes, and checksums stay as right or wrong as they were.

A failure says the seed, the packet's number and its bytes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from frames import checksums, fields_of_nat, has_valid_checksums
from harness import FROM_POD, NEXT, REDIRECT, SHOT, TO_POD, Datapath
from packets import (
    BACKEND,
    CLIENT,
    OUTSIDE,
    PORT_UNREACHABLE,
    ROUTER,
    TOO_BIG,
    VIP,
    VIP_B,
    Packet,
    echo_request,
    icmp_error,
    longest,
    router_alert,
    sctp,
    source_route,
    tcp,
    udp,
)
from scapy.layers.sctp import SCTPChunkInit

from kproxy_ebpf.contract.layouts import BackendState, Direction, FrontendFlags, Verdict

PACKETS_PER_SEED = 2500
EMPTY, DROPPING, LOST = VIP.on(81), VIP.on(82), VIP.on(83)
LEFT_ALONE = {Verdict.UNTOUCHED, Verdict.FRAGMENT, Verdict.MIDSTREAM, Verdict.MALFORMED}


def well_formed(family: int) -> list[bytes]:
    """What mutations start from: every kind of packet that means something to the programs."""
    ports = (VIP, VIP_B, EMPTY, DROPPING, LOST, VIP.on(99), OUTSIDE)
    packets: list[Packet] = []
    for between in (None, router_alert, longest, *((source_route,) if family == 6 else ())):
        packets += [tcp(CLIENT, port, flags, b"data", between) for port in ports for flags in ("S", "A", "FA", "R")]
        packets += [udp(CLIENT, port, b"data", between) for port in ports]
        packets += [tcp(BACKEND, CLIENT, "SA", b"data", between), udp(BACKEND, CLIENT, b"data", between)]
        for about in (tcp(CLIENT, BACKEND, "A", b"", between), udp(CLIENT, BACKEND, b"", between)):
            packets += [icmp_error(kind, ROUTER, CLIENT.host, about) for kind in (TOO_BIG, PORT_UNREACHABLE)]
        packets.append(icmp_error(TOO_BIG, CLIENT.host, VIP.host, tcp(VIP, CLIENT, "A", b"", between)))
    packets += [sctp(CLIENT, VIP, SCTPChunkInit(init_tag=1)), echo_request(CLIENT, VIP), udp(CLIENT, VIP, chksum=0)]
    return [packet.frame(family) for packet in packets]


def header_bytes(family: int) -> int:
    """What a test run wants at least: the kernel refuses a frame without a whole IP header."""
    return 14 + {4: 20, 6: 40}[family]


def mutated(randomness: random.Random, frames: list[bytes], family: int) -> bytes:
    """One of `frames` with a few of its bytes changed, cut short, padded, or continued with another one."""
    frame = bytearray(randomness.choice(frames))
    for _ in range(randomness.choice((0, 1, 1, 2, 4))):
        frame[randomness.randrange(14, len(frame))] = randomness.choice((0, 0xFF, randomness.randrange(256)))
    match randomness.randrange(6):
        case 0:
            del frame[randomness.randrange(header_bytes(family), len(frame) + 1) :]
        case 1:
            frame += randomness.randbytes(randomness.randrange(64))
        case 2:
            other = randomness.choice(frames)
            at = randomness.randrange(14, min(len(frame), len(other)))
            frame = frame[:at] + other[at:]
    return bytes(frame.ljust(header_bytes(family), b"\0"))


def noise(randomness: random.Random, frames: list[bytes], family: int) -> bytes:
    """The link-layer header of a packet of the family and anything behind it."""
    size = header_bytes(family) + randomness.randrange(100)
    return randomness.choice(frames)[:14] + randomness.randbytes(size - 14)


def stream(seed: int, family: int) -> Iterator[tuple[str, Direction, bytes]]:
    """(what to say in a failure, hook, frame) of every packet of a seed."""
    randomness, frames = random.Random(seed), well_formed(family)
    for number in range(PACKETS_PER_SEED):
        make = noise if randomness.random() < 0.1 else mutated
        frame, hook = make(randomness, frames, family), randomness.choice((FROM_POD, FROM_POD, TO_POD))
        yield f"seed {seed}, packet {number} at {hook.name}: {frame.hex()}", hook, frame


@pytest.mark.parametrize("seed", range(4))
def test_without_services_nothing_changes(empty: Datapath, seed: int) -> None:
    before, packets = empty.count(), 0
    for about, hook, frame in stream(seed, empty.family):
        result = empty.run(hook, frame)
        assert (result.retval, result.data) == (NEXT, frame), about
        packets += 1
    counted = {verdict: count - before[verdict] for verdict, count in empty.count().items() if count > before[verdict]}
    assert counted.keys() <= LEFT_ALONE
    assert sum(counted.values()) == packets
    assert empty.flows.count() == 0


@pytest.fixture
def busy(datapath: Datapath) -> Datapath:
    """Frontends of every kind, and flows that the packets belong to."""
    for protocol in ("tcp", "udp"):
        datapath.add_frontend(EMPTY, [], protocol)
        datapath.add_frontend(DROPPING, [], protocol, flags=FrontendFlags.DROP)
        lost = datapath.add_backend(3, BACKEND.on(8083), service_id=3)
        datapath.add_frontend(LOST, [lost], protocol, service_id=3)
    for opening in (tcp(CLIENT, VIP, "S"), udp(CLIENT, VIP), tcp(CLIENT, LOST, "S"), udp(CLIENT, LOST)):
        datapath.run(FROM_POD, opening.frame(datapath.family))
    datapath.set_backend(3, state=BackendState.GONE)
    return datapath


@pytest.mark.parametrize("seed", range(100, 104))
def test_with_services_only_what_nat_may_change_changes(busy: Datapath, seed: int) -> None:
    seen = set()
    for about, hook, frame in stream(seed, busy.family):
        result = busy.run(hook, frame)
        if result.retval == SHOT:
            assert _may_concern(busy, frame), about
        elif result.retval == REDIRECT:
            assert result.data[:12] == frame[6:12] + frame[:6], about
            if not has_valid_checksums(result.data, busy.family):  # no answer: a packet of the backend's to itself
                _check_translated(busy, frame, frame[:12] + result.data[12:], about)
        else:
            assert result.retval == NEXT, about
            if result.data != frame:
                _check_translated(busy, frame, result.data, about)
        seen.add((result.retval, result.data != frame))
    assert len(seen) >= 4  # dropped, answered, translated, untouched: else this test tests nothing


def _check_translated(datapath: Datapath, frame: bytes, became: bytes, about: str) -> None:
    assert len(became) == len(frame), about
    changed = {index for index, pair in enumerate(zip(frame, became, strict=True)) if pair[0] != pair[1]}
    assert changed <= fields_of_nat(frame, datapath.family), about
    assert checksums(became, datapath.family) == checksums(frame, datapath.family), about
    assert _may_concern(datapath, frame), about


def _may_concern(datapath: Datapath, frame: bytes) -> bool:
    """Whether a VIP or the backend is named anywhere in the headers; without, no table has anything to say."""
    return any(end.host.packed(datapath.family) in frame for end in (VIP, VIP_B, BACKEND))
