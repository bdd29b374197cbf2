"""Which address is a pod's: one link's alone, and one of each link."""

from __future__ import annotations

import socket

import pytest

from kproxy_ebpf.datapath.forwarding.obstacles import Obstacle, obstacle_at
from kproxy_ebpf.datapath.forwarding.pod_addresses import is_link_local, one_each
from kproxy_ebpf.linux.rtnetlink import Neighbours

A, B = socket.inet_aton("10.244.1.2"), socket.inet_aton("10.244.1.3")
LINK, OTHER, NO_PORT = 3, 4, 5
PORTS = {LINK, OTHER}


@pytest.mark.parametrize(
    ("claims", "known", "wanted"),
    [
        ({A: {LINK}, B: {OTHER}}, {}, {A: LINK, B: OTHER}),
        ({A: {LINK, OTHER}}, {}, {}),
        ({A: {LINK, OTHER}}, {A: LINK}, {}),
        ({A: {LINK, 0}}, {A: LINK}, {}),
        ({A: {NO_PORT}}, {}, {}),
        ({A: {LINK}, B: {LINK}}, {}, {A: LINK}),
        ({A: {LINK}, B: {LINK}}, {B: LINK}, {B: LINK}),
        ({A: {OTHER}}, {A: LINK}, {A: OTHER}),
    ],
    ids=[
        "one each",
        "two links claim it",
        "also where one of them had it",
        "a bridge says that it is behind no pod's port",
        "a link that packets can't be handed through",
        "two addresses of a link",
        "the one known stays",
        "it has moved",
    ],
)
def test_claims(claims: dict[bytes, set[int]], known: dict[bytes, int], wanted: dict[bytes, int]) -> None:
    assert one_each(claims, PORTS, known) == wanted


@pytest.mark.parametrize(
    ("address", "answer"), [("fe80::1", True), ("169.254.1.1", True), ("10.0.0.1", False), ("fd00::1", False)]
)
def test_each_link_has_its_own_link_local_addresses(address: str, answer: bool) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    assert is_link_local(socket.inet_pton(family, address)) is answer


class Message(dict[str, object]):
    def get_attr(self, name: str) -> object:
        return self.get(name)

    def get_nested(self, *_: str) -> str:
        return "veth"


def neighbour(event: str, mac: str | None, state: int = 2) -> Message:
    return Message(event=event, family=socket.AF_INET, ifindex=3, state=state, NDA_DST="10.244.1.2", NDA_LLADDR=mac)


def test_how_fresh_a_neighbour_is_is_no_news() -> None:
    neighbours = Neighbours()
    story = [
        (neighbour("RTM_NEWNEIGH", "02:00:00:00:00:01"), True),
        (neighbour("RTM_NEWNEIGH", "02:00:00:00:00:01", state=4), False),
        (neighbour("RTM_NEWNEIGH", "02:00:00:00:00:02"), True),
        (neighbour("RTM_NEWNEIGH", None, state=0x20), True),
        (neighbour("RTM_NEWNEIGH", None, state=0x01), False),
        (neighbour("RTM_DELNEIGH", "02:00:00:00:00:02"), False),
    ]
    assert [neighbours.changes(message) for message, _ in story] == [news for _, news in story]


@pytest.mark.parametrize(("plain_bridges", "obstacle"), [({9}, None), (set(), Obstacle.NO_PLAIN_BRIDGE)])
def test_a_bridge_that_looks_at_vlan_tags_is_an_obstacle(plain_bridges: set[int], obstacle: Obstacle | None) -> None:
    """Not every kernel can make one, so this is no test of tests/bpf."""
    link = Message(flags=1, IFLA_LINK_NETNSID=0, IFLA_QDISC="noqueue", IFLA_MASTER=9)
    assert obstacle_at(link, plain_bridges) is obstacle
