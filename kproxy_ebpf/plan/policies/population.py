"""Who has which address, and which traits each pod has, kept up to date pod by pod and trait by trait."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kproxy_ebpf.model.policies import Pod, PodName, PortName, Prefix
from kproxy_ebpf.model.policy_snapshot import PolicySnapshot
from kproxy_ebpf.plan.policies.traits import Group, PodTrait, PortTrait, Traits

NO_TRAITS: frozenset[int] = frozenset()


@dataclass(slots=True)
class Members:
    """The pods of one group, and the numbers of the PodTraits that all of them have."""

    pods: set[PodName] = field(default_factory=set)
    traits: frozenset[int] = NO_TRAITS


class Population:
    """The pods that count, as `snapshot` had them when `put` was called for them last."""

    def __init__(self, snapshot: PolicySnapshot, traits: Traits) -> None:
        self._snapshot = snapshot
        self._traits = traits
        self._pods: dict[PodName, Pod] = {}
        self._groups: dict[str, dict[Group, Members]] = {}  # by namespace
        self._claims: dict[bytes, tuple[PodName, ...]] = {}  # by address
        self._sorted: dict[int, list[bytes]] = {4: [], 16: []}  # all addresses, by their length
        self._of_namespace: dict[str, dict[int, PodTrait]] = {}
        self._of_all: dict[int, PodTrait] = {}  # traits with a namespaceSelector
        self._names: set[PortName] = set()

    def put(self, key: PodName) -> set[bytes]:
        """Learn what the snapshot says of a pod. Returns the addresses whose traits may be others now."""
        touched: set[bytes] = set()
        before = self._pods.pop(key, None)
        if before is not None:
            touched.update(before.addresses)
            self._leave(before)
        pod = self._snapshot.pods.get(key)
        if pod is not None and pod.counts:
            touched.update(pod.addresses)
            self._pods[key] = pod
            self._join(pod)
        return touched

    def traits_of(self, address: bytes) -> frozenset[int]:
        """The traits of the pod that has `address`, those of blocks left out."""
        pod = self.owner(address)
        if pod is None:
            return NO_TRAITS
        traits = self._groups[pod.key.namespace][pod.key.namespace, pod.labels].traits
        ports = [port for port in pod.ports if PortName(port.protocol, port.name) in self._names]
        if not ports:
            return traits
        return traits.union(self._traits.number_of(PortTrait(each.protocol, each.name, each.number)) for each in ports)

    def owner(self, address: bytes) -> Pod | None:
        """The pod that has `address`. Of several the newest that is not terminating: the address is used anew."""
        claims = self._claims.get(address, ())
        if len(claims) < 2:
            return self._pods[claims[0]] if claims else None
        return max((self._pods[key] for key in claims), key=lambda pod: (not pod.is_terminating, pod.created, pod.key))

    def within(self, prefix: Prefix) -> Sequence[bytes]:
        """The addresses of pods that lie in `prefix`."""
        width = len(prefix.network)
        last = int.from_bytes(prefix.network) | (1 << 8 * width - prefix.bits) - 1
        addresses = self._sorted[width]
        return addresses[bisect_left(addresses, prefix.network) : bisect_right(addresses, last.to_bytes(width))]

    def add_trait(self, number: int) -> set[bytes]:
        """From now on the trait tells pods apart. Returns the addresses that have it."""
        trait = self._traits[number]
        assert isinstance(trait, PodTrait)  # noqa: S101
        if trait.namespace is None:
            self._of_all[number] = trait
        else:
            self._of_namespace.setdefault(trait.namespace, {})[number] = trait
        touched: set[bytes] = set()
        for members in self._selected(trait):
            members.traits |= {number}
            touched |= self._addresses_of(members)
        return touched

    def remove_trait(self, number: int) -> set[bytes]:
        trait = self._traits[number]
        assert isinstance(trait, PodTrait)  # noqa: S101
        if trait.namespace is None:
            del self._of_all[number]
        else:
            del self._of_namespace[trait.namespace][number]
        touched: set[bytes] = set()
        for members in self._selected(trait):
            members.traits -= {number}
            touched |= self._addresses_of(members)
        return touched

    def add_name(self, name: PortName) -> set[bytes]:
        """From now on the port's number tells pods apart. Returns the addresses of pods that have it."""
        self._names.add(name)
        return self._with_port(name)

    def remove_name(self, name: PortName) -> set[bytes]:
        self._names.discard(name)
        return self._with_port(name)

    def relabel(self, namespace: str) -> set[bytes]:
        """The namespace's labels have changed. Returns the addresses whose traits are others now."""
        touched: set[bytes] = set()
        for group, members in self._groups.get(namespace, {}).items():
            traits = self._told(group)
            if traits != members.traits:
                members.traits = traits
                touched |= self._addresses_of(members)
        return touched

    def _join(self, pod: Pod) -> None:
        group = (pod.key.namespace, pod.labels)
        groups = self._groups.setdefault(pod.key.namespace, {})
        members = groups.get(group)
        if members is None:
            members = groups[group] = Members(traits=self._told(group))
        members.pods.add(pod.key)
        for address in pod.addresses:
            if address not in self._claims:
                insort(self._sorted[len(address)], address)
            self._claims[address] = (*self._claims.get(address, ()), pod.key)

    def _leave(self, pod: Pod) -> None:
        group = (pod.key.namespace, pod.labels)
        groups = self._groups[pod.key.namespace]
        groups[group].pods.discard(pod.key)
        if not groups[group].pods:
            del groups[group]
            if not groups:
                del self._groups[pod.key.namespace]
        for address in pod.addresses:
            rest = tuple(key for key in self._claims[address] if key != pod.key)
            if rest:
                self._claims[address] = rest
            else:
                del self._claims[address]
                addresses = self._sorted[len(address)]
                del addresses[bisect_left(addresses, address)]

    def _told(self, group: Group) -> frozenset[int]:
        namespace, labels = group
        known = dict(labels)
        own = self._of_namespace.get(namespace, {}).items()
        return frozenset(
            [number for number, trait in own if trait.pods.matches(known)]
            + [
                number
                for number, trait in self._of_all.items()
                if trait.pods.matches(known) and self._reaches(trait, namespace)
            ]
        )

    def _selected(self, trait: PodTrait) -> Iterator[Members]:
        places = self._groups if trait.namespace is None else (trait.namespace,)
        for namespace in places:
            if self._reaches(trait, namespace):
                for (_, labels), members in self._groups.get(namespace, {}).items():
                    if trait.pods.matches(dict(labels)):
                        yield members

    def _reaches(self, trait: PodTrait, namespace: str) -> bool:
        return trait.namespaces is None or self._snapshot.namespace_matches(trait.namespaces, namespace)

    def _addresses_of(self, members: Members) -> set[bytes]:
        return {address for key in members.pods for address in self._pods[key].addresses}

    def _with_port(self, name: PortName) -> set[bytes]:
        return {
            address
            for pod in self._pods.values()
            if any(PortName(port.protocol, port.name) == name for port in pod.ports)
            for address in pod.addresses
        }
