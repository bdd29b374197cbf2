"""The addresses of pods, as read from the tables of a kernel: which routes are believed."""

from __future__ import annotations

from socket import AF_INET, AF_INET6, if_nametoindex, inet_ntop

import pytest
from links import ip, tc

from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.datapath.forwarding.obstacles import Obstacle
from kproxy_ebpf.datapath.forwarding.pod_addresses import PodAddresses

POD = {4: "10.244.9.2", 6: "fd00:244:9::2"}
GATEWAY = {4: "10.244.9.1", 6: "fd00:244:9::1"}
BITS = {4: 32, 6: 128}


@pytest.fixture(params=FAMILIES, ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def pod_link(netns: str) -> int:
    ip(
        f"link add veth-a up type veth peer name eth0 netns {netns}-pod",
        f"link add veth-b up type veth peer name eth1 netns {netns}-pod",
    )
    return if_nametoindex("veth-a")


def learned(family: int, link: int) -> dict[str, int]:
    found = PodAddresses().read({link, if_nametoindex("veth-b")}, {each: {} for each in FAMILIES}).addresses[family]
    return {inet_ntop({4: AF_INET, 6: AF_INET6}[family], address): ifindex for address, ifindex in found.items()}


@pytest.mark.parametrize("scope", ["link", "host", "global"])
def test_a_host_route_is_believed_whatever_its_scope(pod_link: int, family: int, scope: str) -> None:
    """The plugin ptp sets scope host, most others scope link."""
    ip(f"route add {POD[family]}/{BITS[family]} dev veth-a scope {scope}")
    assert learned(family, pod_link) == {POD[family]: pod_link}


def test_the_gateway_at_a_pods_link_is_no_pods(pod_link: int, family: int) -> None:
    """The plugin ptp gives every link the same address of the host. Of IPv6 the kernel makes a host route, too."""
    bits, nodad = BITS[family], "nodad" if family == 6 else ""
    ip(f"addr add {GATEWAY[family]}/{bits} {nodad} dev veth-a", f"route add {POD[family]}/{bits} dev veth-a")
    assert learned(family, pod_link) == {POD[family]: pod_link}


@pytest.mark.parametrize(
    "other",
    [
        "unreachable {pod} metric 1",
        "{pod} via {router} metric 1",
        "{pod} dev veth-b metric 1",
    ],
    ids=["refused", "behind a router", "behind another link"],
)
def test_an_address_with_another_host_route_is_no_pods(pod_link: int, family: int, other: str) -> None:
    pod, router = f"{POD[family]}/{BITS[family]}", {4: "192.0.2.1", 6: "2001:db8::1"}[family]
    ip("addr add 192.0.2.2/24 dev veth-b", "addr add 2001:db8::2/64 nodad dev veth-b")
    ip(f"route add {pod} dev veth-a metric 7")
    assert learned(family, pod_link) == {POD[family]: pod_link}
    ip(f"route add {other.format(pod=pod, router=router)}")
    assert learned(family, pod_link) == {}


def test_what_keeps_each_link_from_being_redirected_to_is_named(netns: str) -> None:
    pod = f"type veth peer name eth0 netns {netns}-pod"
    ip(
        "link add veth-alone up type veth peer name peer0",
        f"link add veth-down {pod}",
        f"link add veth-queue up {pod.replace('eth0', 'eth1')}",
        "link add plain up type bridge",
        f"link add veth-port up master plain {pod.replace('eth0', 'eth3')}",
        f"link add veth-new up {pod.replace('eth0', 'eth4')}",
        f"link add veth-two up {pod.replace('eth0', 'eth5')}",
        f"link add veth-good up {pod.replace('eth0', 'eth6')}",
        "route add 10.244.9.2/32 dev veth-two",
        "route add unreachable 10.244.9.2/32 metric 7",
        "route add 10.244.9.3/32 dev veth-good",
    )
    tc("qdisc", "add", "dev", "veth-queue", "root", "pfifo")
    names = {"alone", "down", "queue", "port", "new", "two", "good"}
    links = {if_nametoindex(f"veth-{name}"): name for name in names}
    found = PodAddresses().read(links.keys(), {each: {} for each in FAMILIES}).obstacles
    assert {links[ifindex]: obstacle for ifindex, obstacle in found.items()} == {
        "alone": Obstacle.NO_VETH,
        "down": Obstacle.DOWN,
        "queue": Obstacle.QUEUE,
        "port": Obstacle.UNKNOWN_NEIGHBOUR,
        "new": Obstacle.NO_HOST_ROUTE,
        "two": Obstacle.CONTESTED,
    }
