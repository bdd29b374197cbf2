"""Which links lead to the other nodes: those that the host's own routes name for the addresses of the cluster."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import ip_network
from typing import NamedTuple

from pyroute2.netlink.rtnl import rt_type

from kproxy_ebpf.datapath.bpf import Map
from kproxy_ebpf.datapath.cluster import Network
from kproxy_ebpf.datapath.generation import Generation
from kproxy_ebpf.datapath.rtnetlink import Message, Survey, hops

_ETHERNET = 1  # ARPHRD_ETHER: a link-layer header of 14 bytes, which the programs expect
_UP, _LOOPBACK = 0x1, 0x8
_PRESENT = (1).to_bytes(4, "little")


class Route(NamedTuple):
    """`is_narrow`: with an MTU of its own, which the stack heeds, and bpf_fib_lookup does not unless it is locked."""

    destination: Network
    links: frozenset[int]
    is_narrow: bool


def leading_out(survey: Survey, networks: Collection[Network], inward: Collection[int]) -> set[int]:
    """The links by which packets to other nodes' addresses in `networks` leave. `inward`: pods' links and bridges."""
    usable = {ifindex for ifindex, message in survey.links.items() if _is_usable(message)}
    routes = [
        route
        for messages in survey.routes.values()
        for message in messages
        if (route := _parse(message)) is not None and route.links.difference(inward)
    ]
    used = [route for network in networks for route in _routes_to(network, routes)]
    narrow = set().union(*(route.links for route in used if route.is_narrow))
    return (usable & set().union(*(route.links for route in used))).difference(narrow, inward)


def _routes_to(network: Network, routes: Iterable[Route]) -> list[Route]:
    """Those to parts of it; where there are none, those with the longest prefix to all of it."""
    same = [route for route in routes if route.destination.version == network.version]
    inside = [route for route in same if route.destination.subnet_of(network)]  # type: ignore[arg-type]
    around = [route for route in same if network.subnet_of(route.destination)]  # type: ignore[arg-type]
    longest = max((route.destination.prefixlen for route in around), default=0)
    return inside or [route for route in around if route.destination.prefixlen == longest]


def _parse(message: Message) -> Route | None:
    """None for what is no way to another node: a local or refused address, or one that is directly behind a link."""
    destination = message.get_attr("RTA_DST") or ("0.0.0.0" if message["family"] == 2 else "::")  # noqa: S104
    network = ip_network((destination, message["dst_len"]))
    has_gateway = any(message.get_attr(name) is not None for name in ("RTA_GATEWAY", "RTA_VIA", "RTA_MULTIPATH"))
    is_neighbour = network.prefixlen == network.max_prefixlen and not has_gateway
    if message["type"] != rt_type["unicast"] or is_neighbour:
        return None
    metrics = message.get_attr("RTA_METRICS")
    is_narrow = metrics is not None and metrics.get_attr("RTAX_MTU") and not metrics.get_attr("RTAX_LOCK")
    return Route(network, frozenset(hops(message)), bool(is_narrow))


def _is_usable(message: Message) -> bool:
    return bool(message["ifi_type"] == _ETHERNET and message["flags"] & (_UP | _LOOPBACK) == _UP)


class UplinkTable:
    """What the programs know of uplinks; as a context manager. Raises OSError where the pin can't be opened."""

    def __init__(self, generation: Generation) -> None:
        self._map: Map = generation.map("uplinks")

    def read(self) -> set[int]:
        return {int.from_bytes(key, "little") for key in self._keys()}

    def add(self, ifindex: int) -> None:
        """Raises MapFullError."""
        self._map.update(ifindex.to_bytes(4, "little"), _PRESENT)

    def remove(self, ifindex: int) -> None:
        self._map.delete(ifindex.to_bytes(4, "little"))

    def _keys(self) -> Iterator[bytes]:
        return (key for key, _ in self._map.items())

    def __enter__(self) -> UplinkTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()
