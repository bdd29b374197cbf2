"""What the snapshot of policies keeps, and what it says has changed."""

from __future__ import annotations

from kproxy_ebpf.model.policies import (
    EVERYTHING,
    Direction,
    Namespace,
    NetworkPolicy,
    Operator,
    Pod,
    PodName,
    PolicyName,
    Requirement,
    Selector,
    labels_of,
)
from kproxy_ebpf.model.policy_snapshot import PolicySnapshot, Touched
from kproxy_ebpf.model.snapshot import Kind, ObjectRef, Refused, Removed, Synced, Unreadable, Upserted

KEY, POD = PolicyName("shop", "p"), PodName("shop", "web")
POLICY_REF, POD_REF = ObjectRef(Kind.NETWORK_POLICY, *KEY), ObjectRef(Kind.POD, *POD)
NAMESPACE_REF = ObjectRef(Kind.NAMESPACE, "", "shop")
POLICY = NetworkPolicy(KEY, EVERYTHING, {Direction.INGRESS: ()})
SHOP = Namespace("shop", labels_of({"kubernetes.io/metadata.name": "shop", "team": "a"}))


def known() -> PolicySnapshot:
    snapshot = PolicySnapshot()
    snapshot.apply(Upserted(POLICY_REF, POLICY))
    snapshot.apply(Upserted(POD_REF, Pod(POD)))
    snapshot.apply(Upserted(NAMESPACE_REF, SHOP))
    return snapshot


def test_what_comes_goes_and_changes_is_told_once() -> None:
    snapshot = known()
    everything = Touched({POD}, {KEY}, {"shop"})
    assert snapshot.take_touched() == everything
    assert not snapshot.take_touched()
    snapshot.apply(Upserted(POLICY_REF, POLICY))
    snapshot.apply(Upserted(POD_REF, Pod(POD)))
    snapshot.apply(Upserted(NAMESPACE_REF, SHOP))
    assert not snapshot.touched
    for ref in (POLICY_REF, POD_REF, NAMESPACE_REF):
        snapshot.apply(Removed(ref))
    assert snapshot.take_touched() == everything
    assert (snapshot.policies, snapshot.pods, snapshot.namespaces) == ({}, {}, {})
    for ref in (POLICY_REF, POD_REF, NAMESPACE_REF):
        snapshot.apply(Removed(ref))
    assert not snapshot.touched


def test_a_policy_that_cant_be_read_closes_its_namespace() -> None:
    snapshot = known()
    snapshot.apply(Refused(POLICY_REF, "odd", Unreadable.CLOSED))
    assert snapshot.policies["shop"]["p"] == NetworkPolicy(KEY, EVERYTHING, dict.fromkeys(Direction, ()))
    assert list(snapshot.refused) == [(Kind.NETWORK_POLICY, "shop", "p")]
    snapshot.apply(Upserted(POLICY_REF, POLICY))
    assert (snapshot.policies["shop"]["p"], snapshot.refused) == (POLICY, {})


def test_a_refusal_in_part_keeps_the_rest_and_an_absent_one_nothing() -> None:
    snapshot = known()
    snapshot.apply(Refused(POLICY_REF, "odd", Unreadable.IN_PART))
    assert snapshot.policies["shop"]["p"] == POLICY
    snapshot.apply(Refused(POD_REF, "odd", Unreadable.ABSENT))
    assert snapshot.pods == {}
    assert len(snapshot.refused) == 2


def test_synced_kinds() -> None:
    snapshot = PolicySnapshot()
    snapshot.apply(Synced(Kind.POD))
    assert snapshot.synced == {Kind.POD}


def test_of_an_unknown_namespace_only_the_name_counts() -> None:
    snapshot = known()
    named = Selector((Requirement("kubernetes.io/metadata.name", Operator.IN, frozenset({"shop"})),))
    no_team = Selector((Requirement("team", Operator.DOES_NOT_EXIST),))
    assert snapshot.namespace_matches(named, "shop")
    assert not snapshot.namespace_matches(no_team, "shop")
    snapshot.apply(Removed(NAMESPACE_REF))
    assert snapshot.namespace_matches(named, "shop")
    assert not snapshot.namespace_matches(named, "other")
    assert not snapshot.namespace_matches(no_team, "shop")
    assert snapshot.namespace_matches(EVERYTHING, "shop")


def test_which_policies_select_a_pod() -> None:
    snapshot = known()
    db = Selector((Requirement("role", Operator.IN, frozenset({"db"})),))
    more = NetworkPolicy(PolicyName("shop", "a"), db, {Direction.EGRESS: ()})
    other = NetworkPolicy(PolicyName("other", "o"), EVERYTHING, {Direction.EGRESS: ()})
    for policy in (more, other):
        snapshot.apply(Upserted(ObjectRef(Kind.NETWORK_POLICY, *policy.key), policy))
    assert snapshot.policies_of(Pod(POD)) == [POLICY]
    assert snapshot.policies_of(Pod(POD, labels_of({"role": "db"}))) == [more, POLICY]
    assert snapshot.policies_of(Pod(PodName("none", "web"))) == []
