"""SEMANTICS: which verdict, for each kind of frontend."""

from __future__ import annotations

import pytest
from simulate import NODE, TCP, UDP, endpoint, key, service, slice_of

from kproxy_ebpf.contract.layouts import FrontendFlags
from kproxy_ebpf.model.service_tables import FrontendKey
from kproxy_ebpf.model.services import (
    Endpoint,
    Protocol,
    Service,
    ServicePort,
    SlicePort,
    TrafficPolicy,
    packed,
    source_range,
    text_of,
)
from kproxy_ebpf.plan.services.endpoints import Rule
from kproxy_ebpf.plan.services.plan import FrontendKind, FrontendPlan, PlanSettings, ServicePlan, plan_service

CLUSTER_IP, NODE_IP, LB_IP, EXTERNAL_IP = "10.96.0.1", "10.0.0.1", "192.0.2.1", "198.51.100.1"
EVERYTHING = {
    "type": "LoadBalancer",
    "ports": (ServicePort("http", TCP, 80, node_port=30080),),
    "load_balancer_ips": (packed(LB_IP),),
    "external_ips": (packed(EXTERNAL_IP),),
}
LOCAL, CLUSTER = TrafficPolicy.LOCAL, TrafficPolicy.CLUSTER
NEAR, FAR = endpoint("1.1.1.1", node_name="here"), endpoint("1.1.1.2", node_name="there")
GONE = endpoint("1.1.1.3", ready=False, serving=False)


def plan(owner: Service, *endpoints: Endpoint, maglev: bool = False) -> ServicePlan:
    return plan_service(owner, (slice_of(owner, *endpoints),), NODE, PlanSettings(maglev))


def frontends(planned: ServicePlan, family: int = 4) -> dict[FrontendKey, FrontendPlan]:
    return {frontend.key: frontend for port in planned.ports.get(family, ()) for frontend in port.frontends}


def targets(frontend: FrontendPlan) -> list[str]:
    return [text_of(address) for address, _ in frontend.targets]


def test_every_kind_of_frontend() -> None:
    found = frontends(plan(service(**EVERYTHING), NEAR))
    assert {frontend.kind: frontend.key for frontend in found.values()} == {
        FrontendKind.CLUSTER_IP: key(CLUSTER_IP),
        FrontendKind.NODE_PORT: key(NODE_IP, 30080),
        FrontendKind.LOAD_BALANCER: key(LB_IP),
        FrontendKind.EXTERNAL_IP: key(EXTERNAL_IP),
        FrontendKind.VIP: key(CLUSTER_IP, 0, 0),
    }


def test_only_the_cluster_ip_rejects_undefined_ports() -> None:
    found = frontends(plan(service(**EVERYTHING), NEAR))
    marked = {each for each, frontend in found.items() if frontend.flags & FrontendFlags.VIP_ONLY}
    assert marked == {key(CLUSTER_IP, 0, 0)}
    assert found[key(CLUSTER_IP, 0, 0)].rule is Rule.UNDEFINED_PORT
    assert targets(found[key(CLUSTER_IP, 0, 0)]) == []


@pytest.mark.parametrize(
    ("internal", "external", "endpoints", "to_cluster_ip", "to_others"),
    [
        (CLUSTER, CLUSTER, (NEAR, FAR), "near far", "near far"),
        (CLUSTER, LOCAL, (NEAR, FAR), "near far", "near far"),
        (CLUSTER, LOCAL, (FAR,), "far", "far"),
        (LOCAL, CLUSTER, (NEAR, FAR), "near", "near far"),
        (LOCAL, LOCAL, (NEAR, FAR), "near", "near far"),
        (LOCAL, CLUSTER, (FAR,), "drop", "far"),
        (LOCAL, LOCAL, (FAR,), "drop", "far"),
        (LOCAL, CLUSTER, (GONE,), "reject", "reject"),
        (CLUSTER, LOCAL, (GONE,), "reject", "reject"),
        (CLUSTER, CLUSTER, (), "reject", "reject"),
    ],
)
def test_verdicts_of_the_traffic_policies(
    internal: TrafficPolicy,
    external: TrafficPolicy,
    endpoints: tuple[Endpoint, ...],
    to_cluster_ip: str,
    to_others: str,
) -> None:
    owner = service(**EVERYTHING, internal_traffic_policy=internal, external_traffic_policy=external)
    found = frontends(plan(owner, *endpoints))

    def verdict(frontend: FrontendPlan) -> str:
        if frontend.targets:
            names = {"1.1.1.1": "near", "1.1.1.2": "far"}
            return " ".join(names[address] for address in targets(frontend))
        return "drop" if frontend.flags & FrontendFlags.DROP else "reject"

    assert verdict(found[key(CLUSTER_IP)]) == to_cluster_ip
    for other in (key(NODE_IP, 30080), key(LB_IP), key(EXTERNAL_IP)):
        assert verdict(found[other]) == to_others


def test_endpoints_that_no_frontend_leads_to_are_known() -> None:
    (port,) = plan(service(internal_traffic_policy=LOCAL), NEAR, FAR, GONE).ports[4]
    assert port.frontends[0].targets == ((packed("1.1.1.1"), 8080),)
    assert {text_of(address): int(flags) for (address, _), flags in port.known.items()} == {
        "1.1.1.1": 3,
        "1.1.1.2": 1,
        "1.1.1.3": 0,
    }


@pytest.mark.parametrize(
    ("ranges", "flagged", "kept"),
    [
        ([], False, 0),
        (["10.0.0.0/8"], True, 1),
        ([" 10.0.0.0/8 ", "192.168.0.0/16"], True, 2),
        (["10.0.0.0/8", "fd00::/8"], True, 1),
        (["fd00::/8"], False, 0),
        (["10.0.0.0/8", "0.0.0.0/0"], False, 0),
        (["10.0.0.0/8", "::/0"], True, 1),
    ],
)
def test_source_ranges(ranges: list[str], flagged: bool, kept: int) -> None:
    owner = service(**EVERYTHING, source_ranges=tuple(source_range(text) for text in ranges))
    planned = plan(owner, NEAR)
    marked = {each for each, found in frontends(planned).items() if found.flags & FrontendFlags.SOURCE_RANGES}
    assert marked == ({key(LB_IP)} if flagged else set())
    assert len(planned.ports[4][0].source_ranges) == kept


def test_source_ranges_without_load_balancer_ip_take_no_room() -> None:
    owner = service(source_ranges=(source_range("10.0.0.0/8"),))
    assert plan(owner, NEAR).ports[4][0].source_ranges == ()


def test_an_address_that_is_both_keeps_its_source_ranges() -> None:
    owner = service(
        load_balancer_ips=(packed(LB_IP),),
        external_ips=(packed(LB_IP), packed(CLUSTER_IP)),
        source_ranges=(source_range("10.0.0.0/8"),),
    )
    found = frontends(plan(owner, NEAR))
    assert found[key(LB_IP)].kind is FrontendKind.LOAD_BALANCER
    assert found[key(CLUSTER_IP)].kind is FrontendKind.CLUSTER_IP


def test_affinity_is_of_every_frontend_but_the_vip_mark() -> None:
    found = frontends(plan(service(**EVERYTHING, affinity_seconds=10800), NEAR))
    assert found.pop(key(CLUSTER_IP, 0, 0)).affinity_seconds == 0
    assert {frontend.affinity_seconds for frontend in found.values()} == {10800}


def test_families_are_planned_apart() -> None:
    owner = service(cluster_ips=(packed("fd00::10"), packed(CLUSTER_IP)))
    slices = (
        slice_of(owner, NEAR),
        slice_of(owner, endpoint("fd00::99"), name="web-6", family=6, ports=(SlicePort("http", TCP, 9090),)),
    )
    planned = plan_service(owner, slices, NODE, PlanSettings())
    assert targets(frontends(planned, 4)[key(CLUSTER_IP)]) == ["1.1.1.1"]
    assert frontends(planned, 6)[key("fd00::10")].targets == ((packed("fd00::99"), 9090),)


def test_a_family_without_frontends_has_no_ports() -> None:
    assert set(plan(service(), NEAR).ports) == {4}


@pytest.mark.parametrize("protocol", list(Protocol))
def test_ports_by_protocol(protocol: Protocol) -> None:
    owner = service(ports=(ServicePort("dns", protocol, 53),))
    found = plan_service(
        owner, (slice_of(owner, NEAR, ports=(SlicePort("dns", protocol, 5353),)),), NODE, PlanSettings()
    )
    assert frontends(found)[key(CLUSTER_IP, 53, protocol)].targets == ((packed("1.1.1.1"), 5353),)


def test_ports_share_a_number_but_not_a_set() -> None:
    owner = service(ports=(ServicePort("tcp", TCP, 53), ServicePort("udp", UDP, 53)))
    slices = (slice_of(owner, NEAR, ports=(SlicePort("tcp", TCP, 1), SlicePort("udp", UDP, 2))),)
    found = frontends(plan_service(owner, slices, NODE, PlanSettings()))
    assert found[key(CLUSTER_IP, 53, TCP)].targets == ((packed("1.1.1.1"), 1),)
    assert found[key(CLUSTER_IP, 53, UDP)].targets == ((packed("1.1.1.1"), 2),)


def test_maglev_marks_frontends_that_have_a_set() -> None:
    assert frontends(plan(service(), NEAR, maglev=True))[key(CLUSTER_IP)].flags == FrontendFlags.MAGLEV
    assert frontends(plan(service(), maglev=True))[key(CLUSTER_IP)].flags == 0


def test_a_key_that_two_ports_claim_goes_to_the_first() -> None:
    owner = service(ports=(ServicePort("a", TCP, 80), ServicePort("b", TCP, 80)))
    (first,) = plan(owner, NEAR).ports[4]
    assert first.name == "a"
