"""What policies say about one pod, and about one pod and a peer: who isolates, which rule admits whom on which ports.

A pure function of what is known, by the rules of plan/policies/rules.py: what is explained is what is planned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kproxy_ebpf.model.policies import (
    LABEL_NAMESPACE_NAME,
    Direction,
    NetworkPolicy,
    Peer,
    Pod,
    PodName,
    PodPeer,
    PolicyName,
    Port,
    PortName,
    PortRange,
    Rule,
    merged,
)
from kproxy_ebpf.model.policy_snapshot import PolicySnapshot
from kproxy_ebpf.model.snapshot import Kind
from kproxy_ebpf.plan.policies.rules import Ranges


@dataclass(frozen=True, slots=True)
class ExplainedPeer:
    """One peer of a rule, in words, and the pods that it is today."""

    text: str
    pods: tuple[PodName, ...]


@dataclass(frozen=True, slots=True)
class ExplainedRule:
    """`peers` None is everybody, `ports` None is everything. A port is in words, with the number that its name has."""

    policy: PolicyName
    place: str
    peers: tuple[ExplainedPeer, ...] | None
    ports: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class ExplainedDirection:
    """`isolated_by` is empty where no policy isolates the pod: everything is admitted, and there are no rules."""

    direction: Direction
    isolated_by: tuple[PolicyName, ...]
    rules: tuple[ExplainedRule, ...]


class End(NamedTuple):
    """One end of a connection: a pod that counts, or a stranger (pod None; so is a hostNetwork pod's address).
    `address` is empty for a pod that has none yet.
    """

    address: bytes
    pod: Pod | None


class Admission(NamedTuple):
    """What one rule admits for one peer."""

    policy: PolicyName
    place: str
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one end says of the other. `ranges` is what all its `admissions` admit together."""

    direction: Direction
    isolated_by: tuple[PolicyName, ...]
    admissions: tuple[Admission, ...]
    ranges: Ranges


def explain_direction(pod: Pod, direction: Direction, snapshot: PolicySnapshot) -> ExplainedDirection:
    """Who isolates `pod` in `direction`, and each rule that then admits somebody."""
    isolating = _isolating(pod, direction, snapshot)
    rules = tuple(
        ExplainedRule(
            policy.key,
            rule.place,
            None if rule.peers is None else tuple(_explained_peer(each, policy, snapshot) for each in rule.peers),
            None if rule.ports is None else tuple(_port_text(each, pod, direction) for each in rule.ports),
        )
        for policy in isolating
        for rule in policy.rules[direction]
    )
    return ExplainedDirection(direction, tuple(policy.key for policy in isolating), rules)


def verdict(pod: Pod, direction: Direction, other: End, snapshot: PolicySnapshot) -> Verdict:
    """What `pod` admits from `other` (Ingress) or to it (Egress)."""
    isolating = _isolating(pod, direction, snapshot)
    if not isolating:
        return Verdict(direction, (), (), None)
    destination = pod if direction is Direction.INGRESS else other.pod
    admissions = tuple(
        Admission(policy.key, rule.place, ranges)
        for policy in isolating
        for rule in policy.rules[direction]
        if _has_peer(rule, policy, other, snapshot) and (ranges := _ranges(rule, destination)) != ()
    )
    keys = tuple(policy.key for policy in isolating)
    return Verdict(direction, keys, admissions, _together([each.ranges for each in admissions]))


def both(one: Ranges, other: Ranges) -> Ranges:
    """The ports that both admit."""
    if one is None or other is None:
        return other if one is None else one
    found = [
        PortRange(a.protocol, max(a.first, b.first), min(a.last, b.last))
        for a in one
        for b in other
        if a.protocol == b.protocol
    ]
    return merged([each for each in found if each.first <= each.last])


def problems(pod: Pod, snapshot: PolicySnapshot) -> Iterator[str]:
    """Sentences about what could not be read and may concern the pod, and what is not known."""
    for (kind, namespace, _), refused in sorted(snapshot.refused.items()):
        if kind in (Kind.FILE, Kind.POD, Kind.NAMESPACE) or namespace == pod.key.namespace:
            yield f"{refused.ref} is {refused.means}: {refused.reason}"
    if _asks_for_labels(pod, snapshot):
        used = {key.namespace for key in snapshot.pods}
        for name in sorted(used - snapshot.namespaces.keys()):
            yield f"Namespace {name} is not known: rules that ask for its labels admit none of its pods"


def _isolating(pod: Pod, direction: Direction, snapshot: PolicySnapshot) -> Sequence[NetworkPolicy]:
    return [policy for policy in snapshot.policies_of(pod) if direction in policy.rules]


def _explained_peer(peer: Peer, policy: NetworkPolicy, snapshot: PolicySnapshot) -> ExplainedPeer:
    pods = (
        pod.key
        for pod in snapshot.pods.values()
        if pod.counts and any(_is_peer(peer, policy, end, snapshot) for end in ends_of(pod))
    )
    return ExplainedPeer(str(peer), tuple(sorted(pods)))


def ends_of(pod: Pod) -> list[End]:
    """A pod that counts at each of its addresses; without address where it has none."""
    return [End(address, pod) for address in pod.addresses or (b"",)]


def _has_peer(rule: Rule, policy: NetworkPolicy, other: End, snapshot: PolicySnapshot) -> bool:
    return rule.peers is None or any(_is_peer(peer, policy, other, snapshot) for peer in rule.peers)


def _is_peer(peer: Peer, policy: NetworkPolicy, other: End, snapshot: PolicySnapshot) -> bool:
    if not isinstance(peer, PodPeer):
        return peer.holds(other.address)
    pod = other.pod
    if pod is None or not peer.pods.matches(dict(pod.labels)):
        return False
    if peer.namespaces is None:
        return pod.key.namespace == policy.key.namespace
    return snapshot.namespace_matches(peer.namespaces, pod.key.namespace)


def _ranges(rule: Rule, destination: Pod | None) -> Ranges:
    if rule.ports is None:
        return None
    return merged([found for port in rule.ports if (found := _numbered(port, destination)) is not None])


def _numbered(port: Port, destination: Pod | None) -> PortRange | None:
    if isinstance(port, PortRange):
        return port
    number = _number_of(port, destination)
    return None if number is None else PortRange(port.protocol, number, number)


def _number_of(name: PortName, pod: Pod | None) -> int | None:
    ports = pod.ports if pod is not None else ()
    return next((each.number for each in ports if (each.protocol, each.name) == name), None)


def _port_text(port: Port, pod: Pod, direction: Direction) -> str:
    if isinstance(port, PortRange):
        return str(port)
    if direction is Direction.EGRESS:
        return f"{port} as the destination names it"
    number = _number_of(port, pod)
    return f"{port}, which this pod does not have" if number is None else f"{port}, here {number}"


def _together(all_ranges: Sequence[Ranges]) -> Ranges:
    found: list[PortRange] = []
    for ranges in all_ranges:
        if ranges is None:
            return None
        found += ranges
    return merged(found)


def _asks_for_labels(pod: Pod, snapshot: PolicySnapshot) -> bool:
    return any(
        requirement.key != LABEL_NAMESPACE_NAME
        for policy in snapshot.policies_of(pod)
        for rules in policy.rules.values()
        for rule in rules
        for peer in rule.peers or ()
        if isinstance(peer, PodPeer) and peer.namespaces is not None
        for requirement in peer.namespaces.requirements
    )
