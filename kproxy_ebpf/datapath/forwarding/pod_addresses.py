"""The pod's address behind each link. The host's own tables decide, never what a packet says.

Point-to-point CNI plugins set a host route (/32, /128) to each pod's link. Bridges have neighbour entries, which name a
link-layer address; the pod with that address is behind a port of the bridge. The address of the pod's own end is read
in the pod's network namespace, since a bridge forgets what it has learned when packets bypass it.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from ipaddress import ip_address
from typing import NamedTuple

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import rt_type

from kproxy_ebpf.contract.scalars import address_bytes
from kproxy_ebpf.datapath.forwarding.obstacles import Obstacle, is_plain_bridge, obstacle_at, without_address
from kproxy_ebpf.datapath.maps.pod_links import LinkFacts
from kproxy_ebpf.linux import rtnetlink
from kproxy_ebpf.linux.netlink import SOCKET_FAMILIES
from kproxy_ebpf.linux.rtnetlink import NO_NEIGHBOUR, Message, Survey, requests

_TABLES = (254, 255)  # main, local: by default the host heeds no other
_ROUNDABOUT = ("RTA_GATEWAY", "RTA_VIA", "RTA_MULTIPATH", "RTA_ENCAP")


class Port(NamedTuple):
    """A pod's link that packets can be redirected to: a veth whose other end, with `mac`, is in another namespace."""

    ifindex: int
    bridge: int  # that it is a port of, or 0
    mac: bytes
    router_mac: bytes  # of the link, or of its bridge
    netns_id: int


class FoundAddresses(NamedTuple):
    """The ports among the links asked for; by family, the port of each address, at most one address for a port; what
    keeps each other link from being a port of a known address; and the links and routes that were read for it.
    """

    ports: dict[int, Port]
    addresses: dict[int, dict[bytes, int]]
    obstacles: dict[int, Obstacle]
    survey: Survey


Claims = dict[bytes, set[int]]
"""By address, the links that claim to have it behind them."""


class PodAddresses:
    """Reads the addresses. It remembers the link-layer addresses of pods' ends: each is read once."""

    def __init__(self) -> None:
        self._macs: dict[int, bytes] = {}

    def read(self, links: Collection[int], known: Mapping[int, Mapping[bytes, int]]) -> FoundAddresses:
        """Read the kernel's tables. `known`: by family, the addresses until now. Raises OSError.

        An address behind a bridge stays known until something contradicts it, because the kernel forgets neighbour
        entries that are not used.
        """
        with requests("addresses of pods") as route:
            survey = rtnetlink.survey(route)
            obstacles: dict[int, Obstacle] = {}
            ports = self._ports(route, survey.links, links, obstacles)
            claims = {
                family: (*_host_routes(messages, family), *_neighbours(route, family, ports))
                for family, messages in survey.routes.items()
            }
        addresses = {family: _addresses(ports, claims[family], known[family]) for family in claims}
        obstacles |= without_address(
            {port.ifindex: port.bridge for port in ports.values()},
            {ifindex for each in addresses.values() for ifindex in each.values()},
            (ifindex for each in claims.values() for address, ifindex in each if not is_link_local(address)),
        )
        return FoundAddresses(ports, addresses, obstacles, survey)

    def _ports(
        self,
        route: IPRoute,
        messages: Mapping[int, Message],
        links: Collection[int],
        obstacles: dict[int, Obstacle],
    ) -> dict[int, Port]:
        """The ports among the links; what keeps each other one from being a port is put into `obstacles`."""
        bridges = {ifindex: _mac(message) for ifindex, message in messages.items() if is_plain_bridge(message)}
        self._macs = {ifindex: mac for ifindex, mac in self._macs.items() if ifindex in messages}
        ports = {}
        for ifindex in links & messages.keys():
            message = messages[ifindex]
            bridge = message.get_attr("IFLA_MASTER") or 0
            if obstacle := obstacle_at(message, bridges):
                obstacles[ifindex] = obstacle
            elif mac := self._mac_behind(route, ifindex, message):
                router_mac = bridges[bridge] if bridge else _mac(message)
                ports[ifindex] = Port(ifindex, bridge, mac, router_mac, message.get_attr("IFLA_LINK_NETNSID"))
            else:
                obstacles[ifindex] = Obstacle.POD_GONE
        return ports

    def _mac_behind(self, route: IPRoute, ifindex: int, message: Message) -> bytes:
        """The link-layer address of the pod's end; b"" where it is gone."""
        if ifindex not in self._macs:
            peer = {"index": message.get_attr("IFLA_LINK"), "if_netnsid": message.get_attr("IFLA_LINK_NETNSID")}
            try:
                (answer,) = route.link("get", **peer)
            except NetlinkError:
                return b""
            self._macs[ifindex] = _mac(answer)
        return self._macs[ifindex]


def facts_of(ports: Mapping[int, Port], addresses: Mapping[bytes, int]) -> dict[int, LinkFacts]:
    """What the programs need to know of the ports, by ifindex, for one family's addresses."""
    pods = {ifindex: address for address, ifindex in addresses.items()}
    return {
        port.ifindex: LinkFacts(pods.get(port.ifindex, b""), port.bridge, port.router_mac, port.netns_id)
        for port in ports.values()
    }


def _addresses(
    ports: Mapping[int, Port], claimed: Iterable[tuple[bytes, int]], known: Mapping[bytes, int]
) -> dict[bytes, int]:
    claims: Claims = {}
    for address, ifindex in claimed:
        if not is_link_local(address):
            claims.setdefault(address, set()).add(ifindex)
    for address, ifindex in known.items():
        if ifindex in ports and ports[ifindex].bridge:
            claims.setdefault(address, {ifindex})
    return one_each(claims, ports.keys(), known)


def one_each(claims: Claims, ports: Collection[int], known: Mapping[bytes, int]) -> dict[bytes, int]:
    """The addresses that exactly one link claims, if it is a port. Of several addresses of one link the known one
    counts, otherwise the lowest.
    """
    sole = {address: next(iter(links)) for address, links in claims.items() if len(links) == 1}
    chosen: dict[int, bytes] = {}
    for address in sorted(sole, key=lambda each: (known.get(each) != sole[each], each)):
        if sole[address] in ports:
            chosen.setdefault(sole[address], address)
    return {address: ifindex for ifindex, address in chosen.items()}


def is_link_local(address: bytes) -> bool:
    """fe80::/10 and 169.254.0.0/16: each link has its own."""
    return ip_address(address).is_link_local


def _host_routes(messages: Iterable[Message], family: int) -> Iterator[tuple[bytes, int]]:
    """The host routes: an address and the link that it is directly behind; 0 if the host would not send it to one."""
    for message in messages:
        if message["dst_len"] == 8 * address_bytes(family) and message.get_attr("RTA_TABLE") in _TABLES:
            yield _packed(family, message.get_attr("RTA_DST")), _link_of(message)


def _link_of(route: Message) -> int:
    """The scope says nothing: of common plugins one sets it to link, one to host, and `ip route` can be told others.

    What the host has itself (each link that the plugin ptp makes, its gateway's address), refuses, or reaches by a
    router or through a tunnel is behind no link, even if another route, of another metric, says so.
    """
    is_direct = route["type"] == rt_type["unicast"] and all(route.get_attr(name) is None for name in _ROUNDABOUT)
    return (route.get_attr("RTA_OIF") or 0) if is_direct else 0


def _neighbours(route: IPRoute, family: int, ports: Mapping[int, Port]) -> Iterator[tuple[bytes, int]]:
    """The neighbours at bridges: an address and the port that it is behind; 0 if that is not a pod's."""
    behind = {(port.bridge, port.mac): port.ifindex for port in ports.values() if port.bridge}
    bridges = {port.bridge for port in ports.values()}
    for message in rtnetlink.dump(partial(route.get_neighbours, family=SOCKET_FAMILIES[family])):
        mac = message.get_attr("NDA_LLADDR")
        if message["ifindex"] in bridges and mac and not message["state"] & NO_NEIGHBOUR:
            address = _packed(family, message.get_attr("NDA_DST"))
            yield address, behind.get((message["ifindex"], _binary(mac)), 0)


def _mac(message: Message) -> bytes:
    return _binary(message.get_attr("IFLA_ADDRESS") or "")


def _binary(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _packed(family: int, address: str) -> bytes:
    return socket.inet_pton(SOCKET_FAMILIES[family], address)
