"""Which backend a new connection gets: at random, by hash, by affinity, and who may connect at all."""

from __future__ import annotations

from collections import Counter

import pytest
from harness import FROM_POD, Datapath, Meanwhile, Step
from packets import BACKEND, BACKEND_B, CLIENT, OUTSIDE, VIP, Endpoint, Host, tcp, udp
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from kproxy_ebpf.contract.layouts import BackendState, FrontendFlags, Verdict

OTHER_CLIENT = Endpoint(Host("10.1.0.3", "fd00:1::3"), 40000)


def chosen(datapath: Datapath, client: Endpoint) -> int:
    """The port that a new connection of `client` goes to: each backend has its own."""
    verdict, result = datapath.see(FROM_POD, tcp(client, VIP, "S").frame(datapath.family))
    assert verdict == Verdict.BALANCED
    return int(Ether(result.data)[TCP].dport)


def backends(datapath: Datapath, count: int, first: int = 1) -> list[int]:
    """Ids of `count` backends that differ in their ports: 9001 for id 1, and so on."""
    return [datapath.add_backend(number, BACKEND.on(9000 + number)) for number in range(first, first + count)]


@pytest.mark.parametrize("flags", [0, FrontendFlags.MAGLEV], ids=["random", "maglev"])
def test_every_slot_gets_its_share(empty: Datapath, flags: int) -> None:
    empty.add_frontend(OUTSIDE, backends(empty, 5, first=10))  # neighbours in `slots` that must never be chosen
    empty.add_frontend(VIP, backends(empty, 3), flags=flags)
    empty.add_frontend(OUTSIDE, backends(empty, 5, first=20), "udp")
    seen = Counter(chosen(empty, CLIENT.on(port)) for port in range(40000, 40300))
    assert seen.keys() == {9001, 9002, 9003}
    assert min(seen.values()) > 50


def test_a_hash_gives_one_connection_the_same_slot_again(empty: Datapath) -> None:
    empty.add_frontend(VIP, backends(empty, 30), flags=FrontendFlags.MAGLEV)
    for port in range(40000, 40020):
        first = chosen(empty, CLIENT.on(port))
        empty.clear_flows()
        assert chosen(empty, CLIENT.on(port)) == first


def test_affinity_keeps_a_client_with_its_backend(empty: Datapath) -> None:
    empty.add_frontend(VIP, backends(empty, 30), affinity_seconds=100)
    first = chosen(empty, CLIENT)
    assert {chosen(empty, CLIENT.on(port)) for port in range(40001, 40020)} == {first}


def test_affinity_is_each_clients_own(empty: Datapath) -> None:
    empty.add_frontend(VIP, backends(empty, 1), affinity_seconds=100)
    assert chosen(empty, CLIENT) == 9001
    empty.add_frontend(VIP, backends(empty, 1, first=2), affinity_seconds=100)
    assert chosen(empty, OTHER_CLIENT) == 9002
    assert chosen(empty, CLIENT.on(40001)) == 9001


def test_affinity_is_each_service_ports_own(empty: Datapath) -> None:
    empty.add_frontend(VIP, backends(empty, 1), affinity_seconds=100)
    assert chosen(empty, CLIENT) == 9001
    empty.add_frontend(VIP, backends(empty, 1, first=2), affinity_seconds=100, service_id=2)
    assert chosen(empty, CLIENT.on(40001)) == 9002


@pytest.fixture
def moved(empty: Datapath) -> Datapath:
    """The client has used backend 1; the slots now lead to backend 2, backend 1 is still usable."""
    empty.add_frontend(VIP, backends(empty, 1), affinity_seconds=100)
    chosen(empty, CLIENT)
    empty.add_frontend(VIP, backends(empty, 1, first=2), affinity_seconds=100)
    return empty


def test_affinity_lasts_from_the_last_use(moved: Datapath) -> None:
    moved.age(97)
    assert chosen(moved, CLIENT.on(40001)) == 9001
    moved.age(97)
    assert chosen(moved, CLIENT.on(40002)) == 9001
    moved.age(102)
    assert chosen(moved, CLIENT.on(40003)) == 9002
    assert chosen(moved, CLIENT.on(40004)) == 9002


@pytest.mark.parametrize(
    "change",
    [{"state": state} for state in BackendState if state != BackendState.USABLE] + [{"epoch": 2}, {"service_id": 2}],
    ids=lambda change: "-".join(f"{key}={int(value)}" for key, value in change.items()),
)
def test_affinity_ends_with_its_backend(moved: Datapath, change: dict[str, int]) -> None:
    moved.set_backend(1, **change)
    assert chosen(moved, CLIENT.on(40001)) == 9002


def test_source_ranges(empty: Datapath) -> None:
    ids = backends(empty, 1)
    for protocol in ("tcp", "udp"):
        empty.add_frontend(VIP, ids, protocol, flags=FrontendFlags.SOURCE_RANGES, service_id=7)
    bits = {4: 24, 6: 64}[empty.family]
    outside = OUTSIDE.on(CLIENT.port)
    to = BACKEND.on(9001)
    empty.admit(8, OUTSIDE.host, bits)  # another Service's
    empty.play(
        Step(FROM_POD, tcp(CLIENT, VIP, "S"), Verdict.DROPPED_SOURCE_RANGE),
        Meanwhile(lambda dp: dp.admit(7, CLIENT.host, bits)),
        Step(FROM_POD, tcp(CLIENT, VIP, "S"), Verdict.BALANCED, tcp(CLIENT, to, "S")),
        Step(FROM_POD, tcp(OTHER_CLIENT, VIP, "S"), Verdict.BALANCED, tcp(OTHER_CLIENT, to, "S")),
        Step(FROM_POD, tcp(outside, VIP, "S"), Verdict.DROPPED_SOURCE_RANGE),
        Step(FROM_POD, udp(outside, VIP), Verdict.DROPPED_SOURCE_RANGE),
    )


def test_one_family_one_table(both: dict[int, Datapath], empty: Datapath) -> None:
    """A VIP of one family says nothing about the other family's."""
    other = both[10 - empty.family]
    other.clear()
    empty.add_frontend(VIP, backends(empty, 1))
    other.play(Step(FROM_POD, tcp(CLIENT, VIP, "S"), Verdict.UNTOUCHED))


def test_a_second_backend_takes_over(empty: Datapath) -> None:
    """New connections follow the frontend at once; the one that exists stays."""
    empty.add_frontend(VIP, [empty.add_backend(1, BACKEND)])
    empty.play(
        Step(FROM_POD, tcp(CLIENT, VIP, "S"), Verdict.BALANCED, tcp(CLIENT, BACKEND, "S")),
        Meanwhile(lambda dp: dp.add_frontend(VIP, [dp.add_backend(2, BACKEND_B)])),
        Step(FROM_POD, tcp(OTHER_CLIENT, VIP, "S"), Verdict.BALANCED, tcp(OTHER_CLIENT, BACKEND_B, "S")),
        Step(FROM_POD, tcp(CLIENT, VIP, "A"), Verdict.TRANSLATED, tcp(CLIENT, BACKEND, "A")),
    )
