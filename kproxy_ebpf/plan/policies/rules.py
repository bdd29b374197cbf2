"""What a pod's policies admit in one direction, as a set of rules that says all of it; and what it admits for a class.

The rules are upstream's (networking.k8s.io/v1, NetworkPolicySpec): policies add up; a port's name means the number that
the destination pod gives it, so for ingress the subject's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from kproxy_ebpf.model.policies import (
    Direction,
    NetworkPolicy,
    Pod,
    Port,
    PortName,
    PortRange,
    Rule,
    merged,
)
from kproxy_ebpf.plan.policies.traits import PortTrait, Trait, Traits, trait_of

Ranges = tuple[PortRange, ...] | None
"""Ports in the fewest ranges; None is everything, () nothing."""


class SubjectRule(NamedTuple):
    """`peers` are numbers of traits, any of which is enough; None is everybody. `names` are egress ports whose numbers
    the destination's PortTraits tell.
    """

    peers: frozenset[int] | None
    ranges: Ranges
    names: frozenset[PortName] = frozenset()


class SubjectKey(NamedTuple):
    """All that a subject admits."""

    direction: Direction
    rules: frozenset[SubjectRule]

    @property
    def is_open(self) -> bool:
        return SubjectRule(None, None) in self.rules

    def traits(self) -> frozenset[int]:
        """Every trait that a rule asks for."""
        return frozenset().union(*(rule.peers or () for rule in self.rules))

    def names(self) -> frozenset[PortName]:
        return frozenset().union(*(rule.names for rule in self.rules))

    def names_of_anybody(self) -> frozenset[PortName]:
        """Names that are admitted for everybody: they matter to classes that have no trait of the rules' peers."""
        return frozenset().union(*(rule.names for rule in self.rules if rule.peers is None))


def subject_key(
    pod: Pod, policies: Iterable[NetworkPolicy], direction: Direction, number_of: Callable[[Trait], int]
) -> SubjectKey | None:
    """What `pod` admits in `direction`, None where no policy isolates it. `policies` are those that select it."""
    isolating = [policy for policy in policies if direction in policy.rules]
    if not isolating:
        return None
    ports = {PortName(port.protocol, port.name): port.number for port in pod.ports}
    rules = set()
    for policy in isolating:
        for rule in policy.rules[direction]:
            found = _subject_rule(rule, policy.key.namespace, direction, ports, number_of)
            if found.peers != frozenset() and (found.ranges != () or found.names):
                rules.add(found)
    return SubjectKey(direction, frozenset(rules))


def _subject_rule(
    rule: Rule,
    namespace: str,
    direction: Direction,
    ports: Mapping[PortName, int],
    number_of: Callable[[Trait], int],
) -> SubjectRule:
    peers = None if rule.peers is None else frozenset(number_of(trait_of(peer, namespace)) for peer in rule.peers)
    if rule.ports is None:
        return SubjectRule(peers, None)
    if direction is Direction.INGRESS:
        return SubjectRule(peers, merged([*_numbered(rule.ports, ports)]))
    names = frozenset(port for port in rule.ports if isinstance(port, PortName))
    return SubjectRule(peers, merged([port for port in rule.ports if isinstance(port, PortRange)]), names)


def _numbered(rule_ports: Iterable[Port], ports: Mapping[PortName, int]) -> Iterator[PortRange]:
    """A name that the pod does not have means nothing."""
    for port in rule_ports:
        if isinstance(port, PortRange):
            yield port
        elif (number := ports.get(port)) is not None:
            yield PortRange(port.protocol, number, number)


def admitted(rules: Iterable[SubjectRule], class_traits: frozenset[int], traits: Traits) -> Ranges:
    """What `rules` admit for addresses that have exactly `class_traits`."""
    found: list[PortRange] = []
    for rule in rules:
        if rule.peers is not None and rule.peers.isdisjoint(class_traits):
            continue
        if rule.ranges is None:
            return None
        found += rule.ranges
        if rule.names:
            found += _named(rule.names, class_traits, traits)
    return merged(found)


def _named(names: frozenset[PortName], class_traits: frozenset[int], traits: Traits) -> Iterator[PortRange]:
    for number in class_traits:
        trait = traits[number]
        if isinstance(trait, PortTrait) and trait.port_name in names:
            yield trait.port_range
