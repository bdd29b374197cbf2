"""Which links lead to other nodes, and what is in the cluster."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy_ebpf.datapath.forwarding.cluster_networks import PrefixSet
from kproxy_ebpf.datapath.forwarding.uplinks import leading_out, own_addresses
from kproxy_ebpf.linux.rtnetlink import Survey

ETH, OTHER, TUNNEL, POD, BRIDGE, LO, DOWN, EMPTY = range(1, 9)
ETHERNET, UP, LOOPBACK = 1, 0x1, 0x8
UNICAST, LOCAL, BLACKHOLE = 1, 2, 6
CLUSTER = [ip_network("10.244.0.0/16")]


class Message(dict[str, Any]):
    """What pyroute2 makes of one: header fields by name, attributes by `get_attr`."""

    def get_attr(self, name: str) -> Any:
        return self.get(name)


LINKS = {
    ifindex: Message(
        ifi_type=type_,
        flags=flags,
        IFLA_MASTER={POD: BRIDGE}.get(ifindex),
        IFLA_LINKINFO=Message(IFLA_INFO_KIND="bridge") if ifindex in (BRIDGE, EMPTY) else None,
    )
    for ifindex, type_, flags in (
        (ETH, ETHERNET, UP),
        (OTHER, ETHERNET, UP),
        (TUNNEL, 768, UP),
        (POD, ETHERNET, UP),
        (BRIDGE, ETHERNET, UP),
        (LO, 772, UP | LOOPBACK),
        (DOWN, ETHERNET, 0),
        (EMPTY, ETHERNET, UP),
    )
}


def route(to: str, link: int, via: str = "", type_: int = UNICAST, **attributes: Any) -> Message:
    network = ip_network(to)
    message = Message(family={4: 2, 6: 10}[network.version], dst_len=network.prefixlen, type=type_, RTA_OIF=link)
    if network.prefixlen:
        message["RTA_DST"] = str(network.network_address)
    if via:
        message["RTA_GATEWAY"] = via
    return Message(message | attributes)


@pytest.mark.parametrize(
    ("routes", "wanted"),
    [
        ([route("10.244.2.0/24", ETH, "10.0.0.2"), route("0.0.0.0/0", OTHER, "10.0.0.1")], {ETH}),
        ([route("10.244.2.0/24", ETH, "10.0.0.2"), route("10.244.3.0/24", OTHER, "10.0.1.2")], {ETH, OTHER}),
        ([route("0.0.0.0/0", OTHER, "10.0.0.1"), route("10.0.0.0/8", ETH, "10.0.0.9")], {ETH}),
        ([route("0.0.0.0/0", ETH, "10.0.0.1"), route("0.0.0.0/0", OTHER, "10.0.0.1")], {ETH, OTHER}),
        ([route("10.244.0.0/16", ETH)], {ETH}),
        ([route("10.244.1.7/32", ETH)], set()),
        ([route("10.244.1.7/32", ETH, "10.0.0.2")], {ETH}),
        ([route("10.244.1.7/32", POD), route("10.244.1.0/24", BRIDGE), route("0.0.0.0/0", ETH, "10.0.0.1")], {ETH}),
        ([route("10.244.2.0/24", TUNNEL, "10.0.0.2"), route("0.0.0.0/0", ETH, "10.0.0.1")], set()),
        ([route("10.244.2.0/24", DOWN, "10.0.0.2")], set()),
        ([route("10.244.2.0/24", ETH, type_=BLACKHOLE)], set()),
        ([route("10.244.2.0/24", 0, RTA_MULTIPATH=[{"oif": ETH}, {"oif": OTHER}])], {ETH, OTHER}),
        ([route("::/0", ETH, "fe80::1")], set()),
        ([route("10.244.2.0/24", ETH, "10.0.0.2", RTA_METRICS=Message(RTAX_MTU=1400))], set()),
        ([route("10.244.2.0/24", ETH, "10.0.0.2", RTA_METRICS=Message(RTAX_MTU=1400, RTAX_LOCK=4))], {ETH}),
        ([route("10.244.2.0/24", ETH, "10.0.0.2", RTA_METRICS=Message(RTAX_MTU=1400, RTAX_LOCK=2))], set()),
        ([route("10.244.2.0/24", ETH, "10.0.0.2"), route("0.0.0.0/0", ETH, RTA_METRICS=Message(RTAX_MTU=9))], set()),
        ([route("10.244.2.0/24", ETH, "10.0.0.2", RTA_ENCAP=Message())], set()),
        ([route("10.244.1.0/24", EMPTY), route("10.244.2.0/24", EMPTY, "10.0.0.2")], {EMPTY}),
        ([route("10.244.1.0/24", EMPTY)], set()),
    ],
    ids=[
        "the nodes' networks",
        "over two links",
        "a route to more than the cluster, the longest",
        "two tables' default routes",
        "directly on the link",
        "a neighbour: a pod that is not ours",
        "one pod of another node",
        "pods' links and bridges",
        "a tunnel without link-layer headers",
        "a link that is down",
        "no way at all",
        "several next hops",
        "the other family",
        "an MTU that the programs would not heed",
        "one that they would",
        "something else is locked",
        "an MTU on the way of the rest of the cluster",
        "an encapsulation",
        "a bridge that leads to other nodes",
        "a bridge without pods",
    ],
)
def test_links_to_other_nodes(routes: list[Message], wanted: set[int]) -> None:
    survey = Survey(LINKS, {4: [each for each in routes if each["family"] == 2], 6: []})
    assert leading_out(survey, CLUSTER, {POD}) == wanted


def test_without_networks_no_link_is_an_uplink() -> None:
    assert leading_out(Survey(LINKS, {4: [route("0.0.0.0/0", ETH, "10.0.0.1")], 6: []}), [], set()) == set()


def test_own_addresses_in_the_cluster() -> None:
    local = [route(to, LO, type_=LOCAL) for to in ("10.244.1.1/32", "10.0.0.1/32", "10.244.9.0/24")]
    survey = Survey(LINKS, {4: [*local, route("10.244.1.7/32", POD)], 6: [route("fd00::1/128", LO, type_=LOCAL)]})
    assert own_addresses(survey, CLUSTER) == {ip_network("10.244.1.1")}


network = st.builds(lambda *pair: ip_network(pair, strict=False), st.integers(0, 2**32 - 1), st.integers(1, 32))


@given(st.lists(network, max_size=5), st.integers(0, 2**32 - 1))
def test_a_prefix_set_covers_what_its_networks_hold(networks: list[Any], number: int) -> None:
    address = ip_address(number)
    covers = PrefixSet(dict.fromkeys(networks, True)).covers(address.packed)
    assert covers == any(address in network for network in networks)


def test_the_longest_prefix_decides() -> None:
    covered = PrefixSet({ip_network("10.244.0.0/16"): True, ip_network("10.244.1.1"): False})
    assert covered.covers(ip_address("10.244.1.2").packed)
    assert not covered.covers(ip_address("10.244.1.1").packed)
