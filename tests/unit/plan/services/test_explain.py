"""Why a frontend leads where it leads: every rule that leaves an endpoint out, and every reason not to be served."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulate import NODE, TCP, endpoint, key, service, slice_of

from kproxy_ebpf.model.services import (
    Endpoint,
    EndpointSlice,
    Node,
    Service,
    ServiceName,
    ServicePort,
    TrafficPolicy,
    packed,
    source_range,
    text_of,
)
from kproxy_ebpf.model.snapshot import Kind, ObjectRef, Refused, Snapshot, Unreadable, Upserted
from kproxy_ebpf.plan.services.claims import Conflict
from kproxy_ebpf.plan.services.endpoints import Rule
from kproxy_ebpf.plan.services.explain import POLICY_IS_LIFTED, ExplainedFrontend, Explanation, LeftOut, State, explain
from kproxy_ebpf.plan.services.plan import FrontendKind, PlanSettings

WEB = ServiceName("shop", "web")
LOCAL = TrafficPolicy.LOCAL
USED = None

READY = endpoint("1.1.1.1")
READY_HERE = endpoint("1.1.1.2", node_name="here")
UNREADY = endpoint("1.1.1.3", ready=False, serving=False)
UNREADY_HERE = endpoint("1.1.1.4", ready=False, serving=False, node_name="here")
DRAINING = endpoint("1.1.1.5", ready=False, terminating=True)
DRAINING_HERE = endpoint("1.1.1.6", ready=False, terminating=True, node_name="here")
DEAD = endpoint("1.1.1.7", ready=False, serving=False, terminating=True)
PUBLISHED = endpoint("1.1.1.8", ready=True, serving=False, terminating=True)
TO_HERE, TO_THERE = (endpoint(f"1.1.2.{n}", node_hints=(name,)) for n, name in enumerate(("here", "there")))
TO_NEAR, TO_FAR = (endpoint(f"1.1.3.{n}", zone_hints=(name,)) for n, name in enumerate(("near", "far")))


def snapshot_of(*objects: Service | EndpointSlice, refused: Iterable[Refused] = ()) -> Snapshot:
    snapshot = Snapshot()
    for each in objects:
        match each:
            case Service():
                snapshot.apply(Upserted(ObjectRef(Kind.SERVICE, *each.key), each))
            case EndpointSlice():
                snapshot.apply(Upserted(ObjectRef(Kind.ENDPOINT_SLICE, each.namespace, each.name), each))
    for event in refused:
        snapshot.apply(event)
    return snapshot


def explained(owner: Service, *endpoints: Endpoint, **options: object) -> Explanation:
    slices = [slice_of(owner, *endpoints)] if endpoints else []
    return explain(WEB, snapshot_of(owner, *slices), NODE, PlanSettings(), **options)  # type: ignore[arg-type]


def by_kind(explanation: Explanation) -> dict[FrontendKind, ExplainedFrontend]:
    """Those of IPv4: NODE has NodePorts in both families."""
    return {frontend.plan.kind: frontend for frontend in explanation.frontends if frontend.family == 4}


@pytest.mark.parametrize(
    ("policy", "rule", "fates"),
    [
        (
            "Cluster",
            Rule.READY,
            {
                READY: USED,
                READY_HERE: USED,
                PUBLISHED: USED,
                UNREADY: LeftOut.NOT_READY,
                DRAINING: LeftOut.TERMINATING,
                DEAD: LeftOut.DEAD,
            },
        ),
        (
            "Cluster",
            Rule.TERMINATING,
            {DRAINING: USED, DRAINING_HERE: USED, UNREADY: LeftOut.NOT_READY, DEAD: LeftOut.DEAD},
        ),
        ("Cluster", Rule.NONE, {UNREADY: LeftOut.NOT_READY, DEAD: LeftOut.DEAD}),
        ("Cluster", Rule.NONE, {}),
        (
            "Cluster",
            Rule.SAME_NODE,
            {TO_HERE: USED, TO_THERE: LeftOut.NODE_HINTS, UNREADY: LeftOut.NOT_READY, DRAINING: LeftOut.TERMINATING},
        ),
        ("Cluster", Rule.SAME_ZONE, {TO_NEAR: USED, TO_FAR: LeftOut.ZONE_HINTS, DEAD: LeftOut.DEAD}),
        ("Cluster", Rule.READY, {TO_NEAR: USED, TO_FAR: USED, READY: USED}),
        (
            "Local",
            Rule.LOCAL_READY,
            {
                READY_HERE: USED,
                READY: LeftOut.OTHER_NODE,
                UNREADY: LeftOut.OTHER_NODE,
                UNREADY_HERE: LeftOut.NOT_READY,
                DRAINING_HERE: LeftOut.TERMINATING,
            },
        ),
        (
            "Local",
            Rule.LOCAL_TERMINATING,
            {
                DRAINING_HERE: USED,
                READY: LeftOut.OTHER_NODE,
                DRAINING: LeftOut.OTHER_NODE,
                UNREADY_HERE: LeftOut.NOT_READY,
            },
        ),
        ("Local", Rule.LOCAL_NONE, {READY: LeftOut.OTHER_NODE, UNREADY_HERE: LeftOut.NOT_READY}),
        ("Local", Rule.NONE, {UNREADY: LeftOut.NOT_READY, DEAD: LeftOut.DEAD}),
    ],
)
def test_what_left_each_endpoint_out(policy: str, rule: Rule, fates: dict[Endpoint, LeftOut | None]) -> None:
    owner = service(internal_traffic_policy=TrafficPolicy(policy))
    frontend = by_kind(explained(owner, *fates))[FrontendKind.CLUSTER_IP]
    assert frontend.plan.rule is rule
    assert {each.endpoint: each.left_out for each in frontend.endpoints} == fates
    assert [each.target for each in frontend.endpoints] == sorted(each.target for each in frontend.endpoints)


@given(
    st.lists(
        st.builds(
            endpoint,
            st.integers(1, 6).map("1.1.1.{}".format),
            ready=st.booleans(),
            serving=st.booleans(),
            terminating=st.booleans(),
            node_name=st.sampled_from(["", "here", "there"]),
            zone_hints=st.sampled_from([(), ("near",), ("far",)]),
            node_hints=st.sampled_from([(), ("here",), ("there",)]),
        ),
        max_size=6,
    ),
    st.sampled_from(TrafficPolicy),
)
def test_a_rule_is_given_for_just_those_that_are_not_used(endpoints: list[Endpoint], policy: TrafficPolicy) -> None:
    owner = service(internal_traffic_policy=policy, external_ips=(packed("192.0.2.9"),))
    for frontend in explained(owner, *endpoints).frontends:
        used = tuple(each.target for each in frontend.endpoints if each.left_out is None)
        assert used == frontend.plan.targets


def test_every_frontend_is_explained() -> None:
    owner = service(
        ports=(ServicePort("http", TCP, 80, node_port=30080),),
        load_balancer_ips=(packed("192.0.2.1"),),
        external_ips=(packed("198.51.100.1"),),
        source_ranges=(source_range("10.0.0.0/8"),),
        external_traffic_policy=LOCAL,
        internal_traffic_policy=LOCAL,
    )
    found = by_kind(explained(owner, READY))
    assert {kind: text_of(each.plan.key.address) for kind, each in found.items()} == {
        FrontendKind.CLUSTER_IP: "10.96.0.1",
        FrontendKind.LOAD_BALANCER: "192.0.2.1",
        FrontendKind.EXTERNAL_IP: "198.51.100.1",
        FrontendKind.NODE_PORT: "10.0.0.1",
        FrontendKind.VIP: "10.96.0.1",
    }
    assert [each.port_name for each in found.values()] == ["http"] * 5
    assert found[FrontendKind.VIP].endpoints == ()
    assert found[FrontendKind.LOAD_BALANCER].source_ranges == owner.source_ranges
    assert found[FrontendKind.NODE_PORT].source_ranges == ()
    external = {FrontendKind.LOAD_BALANCER, FrontendKind.EXTERNAL_IP, FrontendKind.NODE_PORT}
    assert {kind for kind, each in found.items() if each.note == POLICY_IS_LIFTED} == external
    assert found[FrontendKind.CLUSTER_IP].plan.rule is Rule.LOCAL_NONE
    assert found[FrontendKind.EXTERNAL_IP].plan.rule is Rule.READY


def test_both_families_are_explained() -> None:
    owner = service(cluster_ips=(packed("10.96.0.1"), packed("fd00:96::1")))
    slices = [slice_of(owner, READY), slice_of(owner, "fd00::7", name="web-6", family=6)]
    found = explain(WEB, snapshot_of(owner, *slices), NODE, PlanSettings())
    pairs = {(each.family, *(text_of(e.target[0]) for e in each.endpoints)) for each in found.frontends}
    assert pairs == {(4, "1.1.1.1"), (4,), (6, "fd00::7"), (6,)}


def test_a_frontend_that_an_older_service_has() -> None:
    older = ServiceName("shop", "older")
    conflicts = [
        Conflict(4, key("192.0.2.9"), winner=older, loser=WEB),
        Conflict(4, key("10.96.0.1"), winner=WEB, loser=older),
    ]
    found = by_kind(explained(service(external_ips=(packed("192.0.2.9"),)), READY, conflicts=conflicts))
    assert found[FrontendKind.EXTERNAL_IP].held_by == older
    assert found[FrontendKind.CLUSTER_IP].held_by is None


def test_a_refused_service_and_its_refused_slices() -> None:
    refused = [
        Refused(ObjectRef(Kind.SERVICE, *WEB), "spec.ports: missing", Unreadable.ABSENT),
        Refused(ObjectRef(Kind.ENDPOINT_SLICE, "shop", "web-abc"), "endpoints[0]: bad", Unreadable.ABSENT),
        Refused(ObjectRef(Kind.ENDPOINT_SLICE, "shop", "website-abc"), "another's", Unreadable.ABSENT),
        Refused(ObjectRef(Kind.ENDPOINT_SLICE, "elsewhere", "web-abc"), "another's", Unreadable.ABSENT),
    ]
    found = explain(WEB, snapshot_of(refused=refused), NODE, PlanSettings())
    assert found.state is State.REFUSED
    assert "Service shop/web is refused" in found.reason
    assert "spec.ports: missing" in found.reason
    assert [problem for problem in found.problems if "endpoints[0]: bad" in problem] == list(found.problems)


@pytest.mark.parametrize(
    ("objects", "words"),
    [([], "there is no Service shop/web"), ([slice_of(service(), READY)], "has EndpointSlices, but")],
)
def test_a_service_that_is_not_known(objects: list[EndpointSlice], words: str) -> None:
    found = explain(WEB, snapshot_of(*objects), NODE, PlanSettings())
    assert (found.state, found.frontends) == (State.UNKNOWN, ())
    assert words in found.reason


def test_a_service_without_slices_rejects() -> None:
    found = explain(WEB, snapshot_of(service()), Node("here"), PlanSettings())
    assert found.state is State.SERVED
    assert by_kind(found)[FrontendKind.CLUSTER_IP].plan.rule is Rule.NONE
