"""The uplinks: the links that the host's own routes name for the addresses of the cluster."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import ip_network
from typing import NamedTuple, Self

from pyroute2.netlink.rtnl import rt_type

from kproxy_ebpf.datapath.forwarding.cluster_networks import Network
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.linux.rtnetlink import Message, Survey, hops

_ETHERNET = 1  # ARPHRD_ETHER: a link-layer header of 14 bytes, which the programs expect
_UP, _LOOPBACK = 0x1, 0x8
_MTU_IS_LOCKED = 1 << 2  # RTAX_MTU in the mask RTAX_LOCK
_PRESENT = (1).to_bytes(4, "little")


class Route(NamedTuple):
    """A route of the host. `is_direct`: it has no next hop.

    `is_strange`: it has an encapsulation, which bpf_fib_lookup refuses, or an MTU of its own, which the host's stack
    heeds and bpf_fib_lookup does not unless it is locked.
    """

    destination: Network
    links: frozenset[int]
    is_direct: bool
    is_strange: bool


def leading_out(survey: Survey, networks: Collection[Network], pods: Collection[int]) -> set[int]:
    """The links by which packets to other nodes' addresses in `networks` leave. `pods`: this node's pods' links."""
    if not networks:
        return set()  # a node has thousands of routes
    bridges = {ifindex for ifindex, message in survey.links.items() if _kind(message) == "bridge"}
    inward = {*pods, *(survey.links[each].get_attr("IFLA_MASTER") for each in pods if each in survey.links)}
    usable = {ifindex for ifindex, message in survey.links.items() if _is_usable(message)} - inward
    routes = [route for message in _unicast(survey) if _is_outward(route := _parse(message), inward, bridges)]
    used = {route for network in networks for route in _routes_to(network, routes)}
    strange = {
        link
        for route in routes
        if route.is_strange and any(_overlap(route.destination, network) for network in networks)
        for link in route.links
    }
    return usable.intersection(link for route in used for link in route.links) - strange


def own_addresses(survey: Survey, networks: Collection[Network]) -> set[Network]:
    """The host's own addresses in `networks`, as networks of one address."""
    if not networks:
        return set()
    local = {
        ip_network(message.get_attr("RTA_DST"))
        for messages in survey.routes.values()
        for message in messages
        if message["type"] == rt_type["local"] and message.get_attr("RTA_DST") and _is_whole(message)
    }
    return {address for address in local if any(_overlap(address, network) for network in networks)}


def _unicast(survey: Survey) -> Iterable[Message]:
    return (
        message for messages in survey.routes.values() for message in messages if message["type"] == rt_type["unicast"]
    )


def _is_outward(route: Route, inward: Collection[int], bridges: Collection[int]) -> bool:
    """True if a route does not lead to pods of this node: they are behind a link of their own, or behind a bridge."""
    is_neighbour = route.is_direct and route.destination.prefixlen == route.destination.max_prefixlen
    at_bridge = route.is_direct and route.links.issubset(bridges)
    return not is_neighbour and not at_bridge and bool(route.links.difference(inward))


def _routes_to(network: Network, routes: Iterable[Route]) -> list[Route]:
    """The routes to parts of the network; if there are none, those with the longest prefix to all of it."""
    overlapping = [route for route in routes if _overlap(route.destination, network)]
    inside = [route for route in overlapping if route.destination.prefixlen >= network.prefixlen]
    longest = max((route.destination.prefixlen for route in overlapping), default=0)
    return inside or [route for route in overlapping if route.destination.prefixlen == longest]


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _parse(message: Message) -> Route:
    destination = message.get_attr("RTA_DST") or ("0.0.0.0" if message["family"] == 2 else "::")  # noqa: S104
    has_gateway = any(message.get_attr(name) is not None for name in ("RTA_GATEWAY", "RTA_VIA", "RTA_MULTIPATH"))
    return Route(
        ip_network((destination, message["dst_len"])),
        frozenset(hops(message)),
        is_direct=not has_gateway,
        is_strange=message.get_attr("RTA_ENCAP") is not None or _has_mtu(message),
    )


def _has_mtu(message: Message) -> bool:
    metrics = message.get_attr("RTA_METRICS")
    if metrics is None or not metrics.get_attr("RTAX_MTU"):
        return False
    return not (metrics.get_attr("RTAX_LOCK") or 0) & _MTU_IS_LOCKED


def _is_whole(message: Message) -> bool:
    return bool(message["dst_len"] == {2: 32, 10: 128}[message["family"]])


def _is_usable(message: Message) -> bool:
    return bool(message["ifi_type"] == _ETHERNET and message["flags"] & (_UP | _LOOPBACK) == _UP)


def _kind(message: Message) -> str | None:
    linkinfo = message.get_attr("IFLA_LINKINFO")
    return None if linkinfo is None else linkinfo.get_attr("IFLA_INFO_KIND")


class UplinkTable:
    """The programs' table of uplinks; as a context manager. Raises OSError where the pin can't be opened."""

    def __init__(self, generation: Generation) -> None:
        self._map = generation.map("uplinks")

    def read(self) -> set[int]:
        return {int.from_bytes(key, "little") for key, _ in self._map.items()}

    def add(self, ifindex: int) -> None:
        """Raises MapFullError."""
        self._map.update(ifindex.to_bytes(4, "little"), _PRESENT)

    def remove(self, ifindex: int) -> None:
        self._map.delete(ifindex.to_bytes(4, "little"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()
