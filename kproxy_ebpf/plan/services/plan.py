"""The plan of one Service: each frontend that a pod may address, and the set of endpoints it leads to.

A pure function of the Service, its slices and this node. plan/tables/ adds ids and slot ranges.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from kproxy_ebpf.contract.layouts import FrontendFlags
from kproxy_ebpf.model.service_tables import FrontendKey
from kproxy_ebpf.model.services import (
    EndpointSlice,
    Node,
    Protocol,
    Service,
    ServiceName,
    ServicePort,
    SourceRange,
    TrafficPolicy,
    family_of,
)
from kproxy_ebpf.plan.services.endpoints import (
    Choice,
    Endpoints,
    Rule,
    Target,
    backend_flags,
    cluster_set,
    known_endpoints,
    local_set,
)


class FrontendKind(StrEnum):
    """Where a frontend's address comes from. VIP marks the ClusterIP itself, for ports that are not defined."""

    CLUSTER_IP = "ClusterIP"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_IP = "ExternalIP"
    NODE_PORT = "NodePort"
    VIP = "VIP"


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """The settings that change plans. With `maglev` a frontend's slot is chosen by the flow's hash, not at random."""

    maglev: bool = False


class FrontendPlan(NamedTuple):
    """One VIP, port and protocol; `targets` in ascending order, `flags` of FrontendFlags."""

    key: FrontendKey
    kind: FrontendKind
    flags: int
    affinity_seconds: int
    targets: tuple[Target, ...]
    rule: Rule


@dataclass(frozen=True, slots=True)
class PortPlan:
    """One Service port in one family. `known` gives the BackendFlags of every endpoint, also of those that no frontend
    leads to: these keep their established connections. `source_ranges` are those of frontends with SOURCE_RANGES.
    """

    name: str
    protocol: Protocol
    frontends: tuple[FrontendPlan, ...]
    known: dict[Target, int]
    source_ranges: tuple[SourceRange, ...] = ()

    @property
    def key(self) -> tuple[str, Protocol]:
        """What tells the ports of a Service apart."""
        return self.name, self.protocol


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """What the tables should hold for one Service, by address family (4, 6)."""

    key: ServiceName
    created: str = ""
    ports: dict[int, tuple[PortPlan, ...]] = field(default_factory=dict)


def plan_service(
    service: Service, slices: Collection[EndpointSlice], node: Node, settings: PlanSettings
) -> ServicePlan:
    """Plan `service` as pods of `node` must see it. A frontend that two of its ports claim goes to the first."""
    ports: dict[int, tuple[PortPlan, ...]] = {}
    for family in (4, 6):
        claimed: set[FrontendKey] = set()
        plans = (_plan_port(service, port, slices, node, family, settings, claimed) for port in service.ports)
        if planned := tuple(plan for plan in plans if plan.frontends):
            ports[family] = planned
    return ServicePlan(service.key, service.created, ports)


def _plan_port(
    service: Service,
    port: ServicePort,
    slices: Collection[EndpointSlice],
    node: Node,
    family: int,
    settings: PlanSettings,
    claimed: set[FrontendKey],
) -> PortPlan:
    addresses: dict[FrontendKey, FrontendKind] = {}
    for key, kind in _frontends(service, port, node, family):
        if key not in claimed:
            addresses.setdefault(key, kind)
    claimed.update(addresses)
    if not addresses:
        return PortPlan(port.name, port.protocol, (), {})
    endpoints = known_endpoints(slices, family, port.name, port.protocol, node.name)
    ranges = _source_ranges(service, family)
    choices = _choices(service, endpoints, node, set(addresses.values()))
    frontends = tuple(
        _frontend(key, kind, choices[kind], service, settings, bool(ranges)) for key, kind in addresses.items()
    )
    restricted = any(frontend.flags & FrontendFlags.SOURCE_RANGES for frontend in frontends)
    known = {target: backend_flags(endpoint, node.name) for target, endpoint in endpoints.items()}
    return PortPlan(port.name, port.protocol, frontends, known, ranges if restricted else ())


def _frontends(
    service: Service, port: ServicePort, node: Node, family: int
) -> Iterator[tuple[FrontendKey, FrontendKind]]:
    """Every key of a port, the most specific kind first: an address may be both a LoadBalancer IP and an externalIP,
    and the source ranges of the former then hold.
    """
    sources = (
        (FrontendKind.CLUSTER_IP, service.cluster_ips, port.port),
        (FrontendKind.LOAD_BALANCER, service.load_balancer_ips, port.port),
        (FrontendKind.EXTERNAL_IP, service.external_ips, port.port),
        (FrontendKind.NODE_PORT, node.addresses if port.node_port else (), port.node_port),
    )
    for kind, addresses, number in sources:
        for address in addresses:
            if family_of(address) == family:
                yield FrontendKey(address, number, int(port.protocol)), kind
    for address in service.cluster_ips:
        if family_of(address) == family:
            yield FrontendKey(address, 0, 0), FrontendKind.VIP


def _choices(
    service: Service, endpoints: Endpoints, node: Node, kinds: set[FrontendKind]
) -> dict[FrontendKind, Choice]:
    """The set for each kind. From a pod, externalTrafficPolicy makes no difference: upstream short-circuits local
    clients to the cluster set. internalTrafficPolicy is the ClusterIP's alone.
    """
    choices: dict[FrontendKind, Choice] = {}
    internal_local = service.internal_traffic_policy is TrafficPolicy.LOCAL
    if not internal_local or kinds - {FrontendKind.CLUSTER_IP, FrontendKind.VIP}:
        choices |= dict.fromkeys(FrontendKind, cluster_set(endpoints, node))
    if internal_local:
        choices[FrontendKind.CLUSTER_IP] = local_set(endpoints, node)
    choices[FrontendKind.VIP] = Choice((), Rule.UNDEFINED_PORT)
    return choices


def _frontend(
    key: FrontendKey, kind: FrontendKind, choice: Choice, service: Service, settings: PlanSettings, ranges: bool
) -> FrontendPlan:
    if kind is FrontendKind.VIP:
        return FrontendPlan(key, kind, FrontendFlags.VIP_ONLY.value, 0, (), choice.rule)
    flags = 0
    if choice.rule is Rule.LOCAL_NONE:
        flags |= FrontendFlags.DROP.value
    if ranges and kind is FrontendKind.LOAD_BALANCER:
        flags |= FrontendFlags.SOURCE_RANGES.value
    if choice.targets and settings.maglev:
        flags |= FrontendFlags.MAGLEV.value
    return FrontendPlan(key, kind, flags, service.affinity_seconds, choice.targets, choice.rule)


def _source_ranges(service: Service, family: int) -> tuple[SourceRange, ...]:
    """The ranges of one family. As upstream has it, none of this family and one of zero bits both admit everybody."""
    ranges = tuple(entry for entry in service.source_ranges if family_of(entry.network) == family)
    return () if any(entry.prefix_bits == 0 for entry in ranges) else ranges
