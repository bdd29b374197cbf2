"""Random clusters: the planner against a naive reading of the rules, the tables against every interleaving."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from simulate import CAPACITIES, NODE, TCP, Clock, Maps, key, service, slice_of

from kproxy_ebpf.contract.layouts import BackendState, FrontendFlags
from kproxy_ebpf.model.service_tables import FrontendKey
from kproxy_ebpf.model.services import (
    Endpoint,
    EndpointSlice,
    Service,
    ServiceName,
    ServicePort,
    SlicePort,
    TrafficPolicy,
    packed,
)
from kproxy_ebpf.plan.services.claims import seniority
from kproxy_ebpf.plan.services.plan import PlanSettings, ServicePlan, plan_service
from kproxy_ebpf.plan.tables.allocate import QUARANTINE_SECONDS
from kproxy_ebpf.plan.tables.services import Tables

POLICIES = st.sampled_from(list(TrafficPolicy))
POOL = [packed(f"1.1.1.{number}") for number in range(1, 7)]
ENDPOINTS = st.builds(
    Endpoint,
    address=st.sampled_from(POOL),
    ready=st.booleans(),
    serving=st.booleans(),
    terminating=st.booleans(),
    node_name=st.sampled_from(["here", "there", ""]),
    zone_hints=st.sampled_from([(), ("near",), ("far",), ("far", "near")]),
    node_hints=st.sampled_from([(), ("here",), ("there",)]),
)
SLICE_PORTS = st.lists(
    st.builds(SlicePort, st.sampled_from(["http", "more"]), st.just(TCP), st.sampled_from([8080, 9090])), max_size=2
).map(tuple)
SLICES = st.lists(st.tuples(SLICE_PORTS, st.lists(ENDPOINTS, max_size=6).map(tuple)), max_size=3)

BASE = service(ports=(ServicePort("http", TCP, 80, 30080), ServicePort("more", TCP, 81)))


def slices_of(
    owner: Service, described: list[tuple[tuple[SlicePort, ...], tuple[Endpoint, ...]]]
) -> list[EndpointSlice]:
    return [
        slice_of(owner, *endpoints, name=f"slice-{number}", ports=ports)
        for number, (ports, endpoints) in enumerate(described)
    ]


def naive(owner: Service, port: ServicePort, slices: list[EndpointSlice], *, internal: bool) -> tuple[str, set[object]]:
    """The rules as SEMANTICS.md words them, one after the other, with no thought of cost."""
    seen = [
        ((each.address, slice_port.port), each)
        for slice_ in slices
        for slice_port in slice_.ports
        if slice_port.name == port.name
        for each in slice_.endpoints
    ]
    merged = {}
    for target, _ in seen:
        rivals = [each for other, each in seen if other == target]
        rivals.sort(
            key=lambda e: (not e.terminating, e.node_name == "here", e.ready, e.serving, e.zone_hints, e.node_hints)
        )
        merged[target] = rivals[-1]
    ready = {target for target, each in merged.items() if each.ready}
    draining = {target for target, each in merged.items() if each.serving and each.terminating}
    local = {target for target, each in merged.items() if each.node_name == "here"}
    if internal and owner.internal_traffic_policy is TrafficPolicy.LOCAL:
        chosen = ready & local or draining & local
        return ("to", chosen) if chosen else ("drop" if ready or draining else "reject", set())
    if not ready:
        return ("to", draining) if draining else ("reject", set())
    for hints, mine in (("node_hints", "here"), ("zone_hints", "near")):
        admitted = {target for target in ready if mine in getattr(merged[target], hints)}
        if admitted and all(getattr(merged[target], hints) for target in ready):
            return "to", admitted
    return "to", ready


@given(SLICES, POLICIES, POLICIES)
@settings(max_examples=300, deadline=None)
def test_plans_agree_with_the_rules(described: list, internal: TrafficPolicy, external: TrafficPolicy) -> None:  # type: ignore[type-arg]
    owner = replace(BASE, internal_traffic_policy=internal, external_traffic_policy=external)
    slices = slices_of(owner, described)
    planned = plan_service(owner, slices, NODE, PlanSettings())
    assert planned == plan_service(owner, slices[::-1], NODE, PlanSettings())
    for port, port_plan in zip(owner.ports, planned.ports[4], strict=True):
        for frontend in port_plan.frontends:
            if frontend.key.port == 0:
                continue
            verdict, targets = naive(owner, port, slices, internal=frontend.key.port != port.node_port)
            drop = bool(frontend.flags & FrontendFlags.DROP)
            assert ("to" if frontend.targets else "drop" if drop else "reject") == verdict
            assert set(frontend.targets) == targets
            assert set(frontend.targets) <= port_plan.known.keys()


@dataclass(frozen=True)
class Step:
    """One Service changes, or goes (`shape` None); `fail_after` single writes the maps refuse to go on."""

    number: int
    shape: tuple[int, bool, TrafficPolicy, tuple[Endpoint, ...]] | None
    seconds: float
    fail_after: int | None
    restart: bool


def step_strategy(*, failing: bool) -> st.SearchStrategy[Step]:
    shape = st.tuples(st.integers(0, 3), st.booleans(), POLICIES, st.lists(ENDPOINTS, max_size=6).map(tuple))
    return st.builds(
        Step,
        number=st.integers(0, 2),
        shape=st.none() | shape,
        seconds=st.sampled_from([0.0, 0.5, 3.0, 200.0]),
        fail_after=st.none() | st.integers(1, 20) if failing else st.none(),
        restart=st.just(False) if failing else st.sampled_from([False, False, False, True]),
    )


class Cluster:
    """Three Services, some of whose keys collide when `contested`, and the tables that follow them."""

    def __init__(self, *, contested: bool) -> None:
        self.contested = contested
        self.clock = Clock()
        self.maps = Maps(self.clock)
        self.tables = Tables(4, CAPACITIES, self.clock)
        self.services: dict[ServiceName, Service] = {}
        self.plans: dict[ServiceName, ServicePlan] = {}

    def do(self, step: Step) -> None:
        self.clock.now += step.seconds
        if step.restart:
            self.restart()
        name = ServiceName("shop", f"s{step.number}")
        self.services.pop(name, None)
        self.plans.pop(name, None)
        if step.shape is not None:
            self._describe(name, step.number, step.shape)
        self.sync({name}, step.fail_after)

    def _describe(
        self, name: ServiceName, number: int, shape: tuple[int, bool, TrafficPolicy, tuple[Endpoint, ...]]
    ) -> None:
        ports, maglev, policy, endpoints = shape
        owner = service(
            name.name,
            cluster_ips=(packed(f"10.96.0.{number + 1}"),),
            external_ips=(packed("9.9.9.9"),) if self.contested else (),
            created=f"202{ports}",
            internal_traffic_policy=policy,
            ports=tuple(ServicePort(f"p{each}", TCP, 80 + each) for each in range(ports)),
        )
        slice_ports = tuple(SlicePort(f"p{each}", TCP, 8080 + each) for each in range(ports))
        self.services[name] = owner
        self.plans[name] = plan_service(
            owner, (slice_of(owner, *endpoints, ports=slice_ports),), NODE, PlanSettings(maglev)
        )

    def sync(self, dirty: set[ServiceName], fail_after: int | None = None) -> None:
        for _ in range(10):
            for name in sorted(dirty):
                self.tables.replace(name, self.plans.get(name))
            dirty = self.tables.take_disturbed()
            try:
                self.maps.perform(self.tables.writes, fail_after)
            except OSError:
                fail_after = None
                continue
            self.tables.commit()
            if not dirty:
                return
        raise AssertionError("it never settles")

    def restart(self) -> None:
        """A new daemon finds the maps as they are: nothing is to be written. No packet outlives a restart."""
        self.maps.released.clear()
        self.tables = Tables(4, CAPACITIES, self.clock)
        self.tables.adopt(self.maps.read_back())
        for name in sorted(self.plans, key=lambda each: seniority(self.services[each].created, each)):
            self.tables.replace(name, self.plans[name])
        self.tables.remove_unclaimed()
        assert not self.tables.writes
        assert self.tables.take_disturbed() == set()

    def end(self) -> None:
        """Without Services everything is free again."""
        gone = set(self.plans)
        self.plans.clear()
        self.sync(gone)
        self.clock.now += QUARANTINE_SECONDS
        assert {used for used, _ in self.tables.occupancy().values()} == {0}
        assert self.maps.contents.frontends == {}

    def check(self) -> None:
        """The maps say what the plans say, the older Service first."""
        expected: dict[FrontendKey, tuple[object, ...]] = {}
        for name in sorted(self.plans, key=lambda each: seniority(self.services[each].created, each), reverse=True):
            for port in self.plans[name].ports.get(4, ()):
                for planned in port.frontends:
                    expected[planned.key] = planned.flags, set(planned.targets)
        found = {
            each: (frontend.flags, self.maps.targets(each)) for each, frontend in self.maps.contents.frontends.items()
        }
        assert found == expected
        usable = sum(row.state == BackendState.USABLE for row in self.maps.contents.backends.values())
        pointed_at = {
            self.maps.cells[cell]
            for frontend in self.maps.contents.frontends.values()
            for cell in range(frontend.slot_base, frontend.slot_base + frontend.slot_count)
        }
        assert usable == len(pointed_at), "a row is usable, but nothing points at it"


@given(st.lists(step_strategy(failing=False), max_size=12), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_maps_follow_and_never_point_at_nothing(steps: list[Step], contested: bool) -> None:
    cluster = Cluster(contested=contested)
    for step in steps:
        cluster.do(step)
        cluster.check()
        cluster.sync(set(cluster.plans))
        assert cluster.maps.perform(cluster.tables.writes) == 0
    cluster.restart()
    cluster.end()


@given(st.lists(step_strategy(failing=True), max_size=12))
@settings(max_examples=150, deadline=None)
def test_failed_writes_are_made_good(steps: list[Step]) -> None:
    cluster = Cluster(contested=False)
    for step in steps:
        cluster.do(step)
        cluster.check()
    cluster.end()


@given(st.lists(st.sampled_from(POOL), unique=True, min_size=1).flatmap(st.permutations), st.booleans())
@settings(deadline=None)
def test_the_order_of_endpoints_means_nothing(order: list[bytes], maglev: bool) -> None:
    cluster = Cluster(contested=False)
    owner = service()
    for addresses in (sorted(order), order):
        slices = (slice_of(owner, *(Endpoint(address) for address in addresses)),)
        cluster.tables.replace(owner.key, plan_service(owner, slices, NODE, PlanSettings(maglev)))
        cluster.maps.perform(cluster.tables.writes)
        writes = bool(cluster.tables.writes)
        cluster.tables.commit()
    assert not writes
    assert cluster.maps.targets(key("10.96.0.1")) == {(address, 8080) for address in order}
