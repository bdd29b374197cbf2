"""What the daemon does about the links to other nodes, with the real tables and the kernel's own routes."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from nodes import LO, NETWORKS, Uplink
from packets import VIP

from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.daemon import uplinks
from kproxy_ebpf.daemon.uplinks import Uplinks
from kproxy_ebpf.datapath.attach.tc import Method
from kproxy_ebpf.datapath.forwarding.cluster_networks import ClusterTable, Network
from kproxy_ebpf.datapath.forwarding.uplinks import UplinkTable
from kproxy_ebpf.datapath.maps.pod_links import StandingKind
from kproxy_ebpf.linux import rtnetlink
from kproxy_ebpf.observe.health import Health


class Attacher:
    """Remembers what it was told; refuses at links that are `forbidden`."""

    def __init__(self) -> None:
        self.carrying: set[int] = set()
        self.forbidden: set[int] = set()

    def attached(self) -> dict[int, Method]:
        return dict.fromkeys(self.carrying, Method.TCX)

    def attach(self, ifindex: int) -> Method:
        if ifindex in self.forbidden:
            raise OSError(16, f"programs at interface {ifindex}: Device or resource busy")
        self.carrying.add(ifindex)
        return Method.TCX

    def detach(self, ifindex: int) -> None:
        self.carrying.discard(ifindex)


class Kept:
    def __init__(self, uplink: Uplink) -> None:
        self.place, self.generation = uplink, uplink.node.generation
        self.attacher, self.health = Attacher(), Health(limit_seconds=60)
        self.networks: list[Network] = [ip_network(NETWORKS[uplink.family])]
        self._uplinks = Uplinks(self.generation, self.attacher, lambda: self.networks, self.health)  # type: ignore[arg-type]

    def follow(self) -> str | None:
        with rtnetlink.requests("links") as route:
            survey = rtnetlink.survey(route)
        self._uplinks.follow(survey, {self.place.node.server_link})
        return self.health.problems.get("uplinks")

    @property
    def told(self) -> set[int]:
        with UplinkTable(self.generation) as table:
            return table.read()

    @property
    def cluster(self) -> set[str]:
        with ClusterTable(self.generation, self.place.family) as table:
            return {str(network) for network, is_pods in table.read().items() if is_pods}


@pytest.fixture
def kept(uplink: Uplink) -> Iterator[Kept]:
    """The tables are empty before and afterwards."""
    forget(uplink)
    yield Kept(uplink)
    forget(uplink)


def forget(uplink: Uplink) -> None:
    for family in FAMILIES:
        with ClusterTable(uplink.node.generation, family) as cluster:
            cluster.remove(cluster.read())
    with UplinkTable(uplink.node.generation) as table:
        for ifindex in table.read():
            table.remove(ifindex)


def test_the_uplink_is_found_and_told_when_it_has_its_programs(kept):
    assert kept.follow() is None
    assert kept.told == kept.attacher.carrying == {kept.place.ifindex}
    assert kept.cluster == {NETWORKS[kept.place.family]}
    assert kept.place.node.unsettled(StandingKind.UNRECORDED) == {LO, kept.place.node.server_link}, (
        "conntrack is asked first"
    )


def test_a_second_look_changes_nothing(kept):
    kept.follow()
    with kept.place.node.table() as table:
        table.settle(StandingKind.UNRECORDED, table.unsettled(StandingKind.UNRECORDED))
    kept.follow()
    assert kept.place.node.unsettled(StandingKind.UNRECORDED) == set()


def test_without_networks_all_is_taken_back(kept):
    kept.follow()
    kept.networks = []
    assert kept.follow() is None
    assert (kept.told, kept.attacher.carrying, kept.cluster) == (set(), set(), set())


def test_what_an_earlier_daemon_has_left_is_taken_off(kept):
    kept.networks = []
    kept.attacher.carrying = {kept.place.ifindex}
    kept.follow()
    assert kept.attacher.carrying == set()


def test_an_uplink_that_refuses_programs_is_not_told(kept):
    kept.follow()
    kept.attacher.forbidden = {kept.place.ifindex}
    assert "busy" in kept.follow()
    assert kept.told == set()
    kept.attacher.forbidden = set()
    assert kept.follow() is None
    assert kept.told == {kept.place.ifindex}


def test_networks_of_services_are_left_out_and_named(kept):
    services = {4: "10.96.0.0/12", 6: "fd00:96::/48"}[kept.place.family]
    kept.networks.append(ip_network(services))
    problem = kept.follow()
    assert services in problem
    assert VIP.host.at(kept.place.family) in problem
    assert kept.cluster == {NETWORKS[kept.place.family]}, "the others serve"


def test_networks_that_no_uplink_leads_to_are_named(kept):
    kept.networks = [ip_network({4: "10.99.0.0/16", 6: "fd00:99::/32"}[kept.place.family])]
    assert str(kept.networks[0]) in kept.follow()


@pytest.mark.parametrize("answer", [True, OSError(1, "IPsec policies can't be read: Operation not permitted")])
def test_ipsec(kept, monkeypatch, answer):
    def has_policies() -> bool:
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(uplinks, "has_policies", has_policies)
    assert "IPsec policies" in kept.follow()
    assert (kept.told, kept.cluster) == (set(), set())


def test_an_address_of_the_host_in_the_cluster_is_no_pods(kept):
    own = {4: "192.168.7.1", 6: "fd00:7::1"}[kept.place.family]
    kept.networks = [ip_network({4: "192.168.0.0/16", 6: "fd00:7::/32"}[kept.place.family])]
    kept.follow()
    with ClusterTable(kept.generation, kept.place.family) as table:
        assert table.read() == {kept.networks[0]: True, ip_network(own): False}
