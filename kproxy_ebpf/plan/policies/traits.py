"""What tells addresses apart, and numbers for it: small, cheap to compare, never used twice."""

from __future__ import annotations

from dataclasses import dataclass

from kproxy_ebpf.model.policies import IpBlock, Labels, Peer, PodPeer, PortName, PortRange, Selector
from kproxy_ebpf.model.services import Protocol


@dataclass(frozen=True, slots=True)
class PodTrait:
    """To be a pod that a peer selects. `namespace` is the policy's own where the peer has no namespaceSelector."""

    namespace: str | None
    namespaces: Selector | None
    pods: Selector


@dataclass(frozen=True, slots=True)
class PortTrait:
    """To be a pod on which a port has this name and number. Egress rules with names ask for it."""

    protocol: Protocol
    name: str
    number: int

    @property
    def port_name(self) -> PortName:
        return PortName(self.protocol, self.name)

    @property
    def port_range(self) -> PortRange:
        return PortRange(self.protocol, self.number, self.number)


Trait = PodTrait | IpBlock | PortTrait


class Traits:
    """Numbers for traits, and back."""

    def __init__(self) -> None:
        self._numbers: dict[Trait, int] = {}
        self._traits: dict[int, Trait] = {}
        self._next = 1

    def __getitem__(self, number: int) -> Trait:
        return self._traits[number]

    def number_of(self, trait: Trait) -> int:
        """The trait's number, a new one where it has none."""
        number = self._numbers.get(trait)
        if number is None:
            number, self._next = self._next, self._next + 1
            self._numbers[trait] = number
            self._traits[number] = trait
        return number

    def forget(self, number: int) -> None:
        """Nothing asks for the trait any longer. Its number is never used again."""
        trait = self._traits.pop(number, None)
        if trait is not None:
            del self._numbers[trait]

    def __len__(self) -> int:
        return len(self._traits)


def trait_of(peer: Peer, namespace: str) -> Trait:
    """The trait that a peer of a policy in `namespace` asks for."""
    if isinstance(peer, PodPeer):
        own = namespace if peer.namespaces is None else None
        return PodTrait(own, peer.namespaces, peer.pods)
    return peer


Group = tuple[str, Labels]
"""Namespace and labels: pods that no selector can tell apart."""
