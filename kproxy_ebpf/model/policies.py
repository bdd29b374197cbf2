"""NetworkPolicies (networking.k8s.io/v1), Namespaces and Pods, reduced to what the rules between pods need.

Where the API has `absent` beside `empty`, the model has None beside (): None admits everybody or everything, () nobody
and nothing. So a list of which nothing could be read never turns into an absent one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from kproxy_ebpf.model.services import Protocol, text_of

LABEL_NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""Every Namespace has it; its value is the Namespace's name, and can't be changed."""

Labels = tuple[tuple[str, str], ...]
"""Keys and values in ascending order: equal labels are one object, shared by all pods of a workload."""


class Direction(StrEnum):
    """Seen from the pod that a policy selects; the API's words for policyTypes."""

    INGRESS = "Ingress"
    EGRESS = "Egress"


class Operator(StrEnum):
    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class Requirement(NamedTuple):
    """One condition of a selector. A matchLabels entry is IN with one value."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def is_met(self, labels: Mapping[str, str]) -> bool:
        """Upstream's rule (labels.Requirement.Matches): NotIn holds for an object without the key."""
        value = labels.get(self.key)
        match self.operator:
            case Operator.IN:
                return value is not None and value in self.values
            case Operator.NOT_IN:
                return value is None or value not in self.values
            case Operator.EXISTS:
                return value is not None
            case Operator.DOES_NOT_EXIST:
                return value is None

    def __str__(self) -> str:
        values = ", ".join(sorted(self.values))
        match self.operator:
            case Operator.IN:
                return f"{self.key}={values}" if len(self.values) == 1 else f"{self.key} in ({values})"
            case Operator.NOT_IN:
                return f"{self.key} not in ({values})"
            case Operator.EXISTS:
                return self.key
            case Operator.DOES_NOT_EXIST:
                return f"!{self.key}"


class Selector(NamedTuple):
    """All requirements have to be met; without any, everything is selected."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.is_met(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ", ".join(map(str, self.requirements)) or "all"


EVERYTHING = Selector()


class Prefix(NamedTuple):
    """A CIDR; `network` has no host bits."""

    network: bytes
    bits: int

    def __str__(self) -> str:
        return f"{text_of(self.network)}/{self.bits}"

    def holds(self, address: bytes) -> bool:
        """True if `address`, of either family, lies in it."""
        if len(address) != len(self.network):
            return False
        shift = 8 * len(address) - self.bits
        return int.from_bytes(address) >> shift == int.from_bytes(self.network) >> shift


@dataclass(frozen=True, slots=True)
class IpBlock:
    """Addresses, those of pods included. `excepts` take from this block only, never from another one."""

    block: Prefix
    excepts: tuple[Prefix, ...] = ()

    def holds(self, address: bytes) -> bool:
        return self.block.holds(address) and not any(each.holds(address) for each in self.excepts)

    def __str__(self) -> str:
        return str(self.block) + (f" except {', '.join(map(str, self.excepts))}" if self.excepts else "")


@dataclass(frozen=True, slots=True)
class PodPeer:
    """Pods. `namespaces` is None where the peer has no namespaceSelector: pods of the policy's own namespace."""

    namespaces: Selector | None
    pods: Selector = EVERYTHING

    def __str__(self) -> str:
        pods = "all pods" if not self.pods.requirements else f"pods with {self.pods}"
        if self.namespaces is None:
            return f"{pods} of the policy's namespace"
        if not self.namespaces.requirements:
            return f"{pods} of all namespaces"
        return f"{pods} of namespaces with {self.namespaces}"


Peer = PodPeer | IpBlock


class PortRange(NamedTuple):
    """`first` to `last` of a protocol; 0 to 65535 where a rule names the protocol only."""

    protocol: Protocol
    first: int
    last: int

    def __str__(self) -> str:
        if (self.first, self.last) == (0, 65535):
            return f"all {self.protocol.name}"
        return f"{self.first}{f'-{self.last}' if self.last != self.first else ''}/{self.protocol.name}"


class PortName(NamedTuple):
    """A port by name: its number is that of the *destination* pod."""

    protocol: Protocol
    name: str

    def __str__(self) -> str:
        return f"{self.name}/{self.protocol.name}"


Port = PortRange | PortName


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `ingress` or `egress`. `peers` None: everybody; `ports` None: everything, other protocols than TCP,
    UDP and SCTP included. `place` names it in its object: "ingress[0]".
    """

    peers: tuple[Peer, ...] | None
    ports: tuple[Port, ...] | None
    place: str = ""


class PolicyName(NamedTuple):
    """The key of a NetworkPolicy."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """A NetworkPolicy. `rules` has an entry for each direction in which it isolates what it selects; an empty one
    admits nothing.
    """

    key: PolicyName
    pods: Selector
    rules: Mapping[Direction, tuple[Rule, ...]]


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str
    labels: Labels


class ContainerPort(NamedTuple):
    name: str
    protocol: Protocol
    number: int


class PodName(NamedTuple):
    """The key of a Pod."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Pod:
    """A Pod. `ports` are the named ones, each name and protocol once. `is_over`: Succeeded or Failed, so its address
    may be another's. `created` is metadata.creationTimestamp (RFC 3339).
    """

    key: PodName
    labels: Labels = ()
    addresses: tuple[bytes, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    node_name: str = ""
    host_network: bool = False
    is_over: bool = False
    is_terminating: bool = False
    created: str = ""
    uid: str = ""

    @property
    def counts(self) -> bool:
        """False for a pod that is neither subject nor peer: it is over, or its address is the node's."""
        return not self.is_over and not self.host_network


def closed_namespace(key: PolicyName) -> NetworkPolicy:
    """What stands for a policy of which nothing can be read: it may select any pod of its namespace."""
    return NetworkPolicy(key, EVERYTHING, dict.fromkeys(Direction, ()))


def labels_of(pairs: Mapping[str, str]) -> Labels:
    return tuple(sorted(pairs.items()))


def merged(ranges: Sequence[PortRange]) -> tuple[PortRange, ...]:
    """The same ports in the fewest ranges, in ascending order."""
    found: list[PortRange] = []
    for protocol, first, last in sorted(ranges):
        if found and found[-1].protocol == protocol and first <= found[-1].last + 1:
            found[-1] = PortRange(protocol, found[-1].first, max(last, found[-1].last))
        else:
            found.append(PortRange(protocol, first, last))
    return tuple(found)
