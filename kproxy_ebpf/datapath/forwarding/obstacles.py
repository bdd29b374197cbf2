"""Why packets of a pod's link can't be redirected: what the kernel says of the link, and of addresses behind it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum

from kproxy_ebpf.linux.rtnetlink import Message

_UP = 1


class Obstacle(StrEnum):
    """Names are those of the metric; `SENTENCES` are for people."""

    NO_VETH = "no_veth"
    DOWN = "down"
    QUEUE = "queue"
    NO_PLAIN_BRIDGE = "no_plain_bridge"
    POD_GONE = "pod_gone"
    CONTESTED = "contested"
    UNKNOWN_NEIGHBOUR = "unknown_neighbour"
    NO_HOST_ROUTE = "no_host_route"


SENTENCES = {
    Obstacle.NO_VETH: "no veth pair that leads to another network namespace",
    Obstacle.DOWN: "the link is down",
    Obstacle.QUEUE: "the link has a queueing discipline, in which packets must wait",
    Obstacle.NO_PLAIN_BRIDGE: "the link's master is no bridge, or a bridge that filters VLANs",
    Obstacle.POD_GONE: "the pod's end is gone",
    Obstacle.CONTESTED: "the pod's address is also claimed by another link or host route",
    Obstacle.UNKNOWN_NEIGHBOUR: "the host has not yet had to find the pod behind its bridge (no neighbour entry)",
    Obstacle.NO_HOST_ROUTE: "no host route (/32, /128) leads to the link",
}


def obstacle_at(link: Message, plain_bridges: Collection[int]) -> Obstacle | None:
    """What keeps a link from being one that packets can be redirected to."""
    if not _leads_away(link):
        return Obstacle.NO_VETH
    if not link["flags"] & _UP:
        return Obstacle.DOWN
    if link.get_attr("IFLA_QDISC") != "noqueue":  # the bandwidth plugin sets one
        return Obstacle.QUEUE
    bridge = link.get_attr("IFLA_MASTER") or 0
    return Obstacle.NO_PLAIN_BRIDGE if bridge and bridge not in plain_bridges else None


def without_address(bridges: Mapping[int, int], known: Collection[int], claimed: Iterable[int]) -> dict[int, Obstacle]:
    """What is amiss with the links whose pod has no known address. `bridges`: by link, the bridge that it is at, or 0;
    `known`: the links of known addresses; `claimed`: those that an address was said to be behind.
    """
    contested = set(claimed)
    return {
        ifindex: Obstacle.CONTESTED
        if ifindex in contested
        else Obstacle.UNKNOWN_NEIGHBOUR
        if bridge
        else Obstacle.NO_HOST_ROUTE
        for ifindex, bridge in bridges.items()
        if ifindex not in known
    }


def is_plain_bridge(link: Message) -> bool:
    """True for a bridge that looks at no VLAN tags."""
    linkinfo = link.get_attr("IFLA_LINKINFO")
    if linkinfo is None or linkinfo.get_attr("IFLA_INFO_KIND") != "bridge":
        return False
    data = linkinfo.get_attr("IFLA_INFO_DATA")
    return data is not None and not data.get_attr("IFLA_BR_VLAN_FILTERING")


def _leads_away(link: Message) -> bool:
    kind = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
    return kind == "veth" and link.get_attr("IFLA_LINK_NETNSID") is not None
