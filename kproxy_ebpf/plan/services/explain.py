"""Why a Service leads where it leads from this node: each frontend's set, its rule, and why others were left out.

A pure function of what the daemon knows. The sets are those of `plan_service`, so what is explained is what is planned.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from kproxy_ebpf.contract.layouts import FrontendFlags
from kproxy_ebpf.model.service_tables import FrontendKey
from kproxy_ebpf.model.services import (
    Endpoint,
    EndpointSlice,
    Node,
    Service,
    ServiceName,
    SourceRange,
    TrafficPolicy,
)
from kproxy_ebpf.model.snapshot import Kind, Snapshot, Unreadable
from kproxy_ebpf.plan.services.claims import Conflict
from kproxy_ebpf.plan.services.endpoints import Rule, Target, is_local, known_endpoints
from kproxy_ebpf.plan.services.plan import FrontendKind, FrontendPlan, PlanSettings, PortPlan, plan_service


class State(StrEnum):
    """What is known of the Service asked for. OFF: the mode says that none is served."""

    SERVED = "served"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    OFF = "off"


class LeftOut(StrEnum):
    """The rule that left an endpoint out of a frontend's set, in words."""

    NOT_READY = "not ready"
    TERMINATING = "terminating, while ready endpoints exist"
    DEAD = "terminating, and serves no more"
    OTHER_NODE = "not on this node, under traffic policy Local"
    NODE_HINTS = "its hints name other nodes"
    ZONE_HINTS = "its hints name other zones"


LOCAL_RULES = frozenset({Rule.LOCAL_READY, Rule.LOCAL_TERMINATING, Rule.LOCAL_NONE})
EXTERNAL_KINDS = frozenset({FrontendKind.LOAD_BALANCER, FrontendKind.EXTERNAL_IP, FrontendKind.NODE_PORT})
POLICY_IS_LIFTED = "externalTrafficPolicy Local does not bind pods: they get the whole cluster's endpoints"


@dataclass(frozen=True, slots=True)
class ExplainedEndpoint:
    """One known endpoint of a frontend. `left_out` is None for one that is used."""

    target: Target
    endpoint: Endpoint
    left_out: LeftOut | None


@dataclass(frozen=True, slots=True)
class ExplainedFrontend:
    """One frontend, its `endpoints` in ascending order. `held_by` is the older Service that has it instead; `note` what
    an operator may wonder about.
    """

    family: int
    port_name: str
    plan: FrontendPlan
    endpoints: tuple[ExplainedEndpoint, ...]
    source_ranges: tuple[SourceRange, ...] = ()
    held_by: ServiceName | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of one Service, seen from `node`. `reason` says why it is not served; `problems` what may be missing of it."""

    service: ServiceName
    node: Node
    state: State
    reason: str = ""
    frontends: tuple[ExplainedFrontend, ...] = ()
    problems: tuple[str, ...] = ()


def explain(
    name: ServiceName, snapshot: Snapshot, node: Node, settings: PlanSettings, conflicts: Iterable[Conflict] = ()
) -> Explanation:
    """Explain the Service `name` as `snapshot` has it. `conflicts`: see Tables.conflicts."""
    problems = tuple(_refused_slices(name, snapshot))
    service = snapshot.services.get(name)
    slices = snapshot.slices.get(name, {}).values()
    if service is not None:
        holders = {conflict.key: conflict.winner for conflict in conflicts if conflict.loser == name}
        plan = plan_service(service, slices, node, settings)
        frontends = tuple(
            frontend
            for family, ports in plan.ports.items()
            for port in ports
            for frontend in _explained(service, family, port, slices, node, holders)
        )
        return Explanation(name, node, State.SERVED, frontends=frontends, problems=problems)
    refused = snapshot.refused.get((Kind.SERVICE, *name))
    if refused is not None:
        reason = f"{refused.ref} is refused and counts as absent: {refused.reason}"
        return Explanation(name, node, State.REFUSED, reason, problems=problems)
    return Explanation(name, node, State.UNKNOWN, _unknown(name, bool(slices)), problems=problems)


def left_out(endpoint: Endpoint, rule: Rule, node: Node) -> LeftOut | None:
    """Why `rule` leaves `endpoint` out from `node`; None where no rule does, and so it is used."""
    if rule in LOCAL_RULES and not is_local(endpoint, node.name):
        return LeftOut.OTHER_NODE
    if rule in (Rule.TERMINATING, Rule.LOCAL_TERMINATING):
        if endpoint.terminating:
            return None if endpoint.serving else LeftOut.DEAD
        return LeftOut.NOT_READY
    if not endpoint.ready:
        if not endpoint.terminating:
            return LeftOut.NOT_READY
        return LeftOut.TERMINATING if endpoint.serving else LeftOut.DEAD
    if rule is Rule.SAME_NODE and node.name not in endpoint.node_hints:
        return LeftOut.NODE_HINTS
    if rule is Rule.SAME_ZONE and node.zone not in endpoint.zone_hints:
        return LeftOut.ZONE_HINTS
    return None


def _explained(
    service: Service,
    family: int,
    port: PortPlan,
    slices: Collection[EndpointSlice],
    node: Node,
    holders: Mapping[FrontendKey, ServiceName],
) -> Iterator[ExplainedFrontend]:
    """The frontends of one port. The mark of a VIP stands for the ports that are not defined: it has no endpoints."""
    known = sorted(known_endpoints(slices, family, port.name, port.protocol, node.name).items())
    for plan in port.frontends:
        lifted = plan.kind in EXTERNAL_KINDS and service.external_traffic_policy is TrafficPolicy.LOCAL
        yield ExplainedFrontend(
            family=family,
            port_name=port.name,
            plan=plan,
            endpoints=() if plan.kind is FrontendKind.VIP else tuple(_endpoints(known, plan, node)),
            source_ranges=port.source_ranges if plan.flags & FrontendFlags.SOURCE_RANGES else (),
            held_by=holders.get(plan.key),
            note=POLICY_IS_LIFTED if lifted else "",
        )


def _endpoints(known: Iterable[tuple[Target, Endpoint]], plan: FrontendPlan, node: Node) -> Iterator[ExplainedEndpoint]:
    used = frozenset(plan.targets)
    for target, endpoint in known:
        yield ExplainedEndpoint(target, endpoint, None if target in used else left_out(endpoint, plan.rule, node))


def _refused_slices(name: ServiceName, snapshot: Snapshot) -> Iterator[str]:
    """A slice that can't be read tells no owner; by convention its name begins with the Service's."""
    for (kind, namespace, slice_name), refused in snapshot.refused.items():
        if kind is Kind.ENDPOINT_SLICE and namespace == name.namespace and slice_name.startswith(f"{name.name}-"):
            means = "refused and counts as absent" if refused.means is Unreadable.ABSENT else refused.means.value
            yield f"{refused.ref} is {means}: {refused.reason}"


def _unknown(name: ServiceName, has_slices: bool) -> str:
    skipped = "headless, ExternalName, or labelled for another proxy"
    if has_slices:
        return f"Service {name} has EndpointSlices, but is not there or is one that a proxy skips ({skipped})"
    return f"there is no Service {name}, or it is one that a proxy skips ({skipped})"
