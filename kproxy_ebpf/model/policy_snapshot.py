"""What is known of policies, namespaces and pods, and what a change of them may concern.

Apart from model/snapshot.py, which has what Services need: a daemon that enforces no policy need not know a single pod.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kproxy_ebpf.model.policies import (
    LABEL_NAMESPACE_NAME,
    Namespace,
    NetworkPolicy,
    Pod,
    PodName,
    PolicyName,
    Selector,
    closed_namespace,
)
from kproxy_ebpf.model.snapshot import Event, Kind, ObjectRef, Refused, Removed, Synced, Unreadable, Upserted


@dataclass(slots=True)
class Touched:
    """What has changed since it was last planned."""

    pods: set[PodName] = field(default_factory=set)
    policies: set[PolicyName] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.pods or self.policies or self.namespaces)


@dataclass(slots=True)
class PolicySnapshot:
    """Only `apply` changes it. `refused` has each object of which not everything could be read."""

    policies: dict[str, dict[str, NetworkPolicy]] = field(default_factory=dict)
    """By namespace and name."""
    namespaces: dict[str, Namespace] = field(default_factory=dict)
    pods: dict[PodName, Pod] = field(default_factory=dict)
    refused: dict[tuple[Kind, str, str], Refused] = field(default_factory=dict)
    synced: set[Kind] = field(default_factory=set)
    touched: Touched = field(default_factory=Touched)

    def apply(self, event: Event) -> None:
        """Fold `event` in, and note what it touches. Kinds that policies don't need are ignored."""
        match event:
            case Synced(kind):
                self.synced.add(kind)
            case Refused(ref, _, means):
                self.refused[ref.kind, ref.namespace, ref.name] = event
                if means is Unreadable.CLOSED:
                    self._upsert(closed_namespace(PolicyName(ref.namespace, ref.name)))
                elif means is Unreadable.ABSENT:
                    self._remove(ref)
            case Removed(ref):
                self.refused.pop((ref.kind, ref.namespace, ref.name), None)
                self._remove(ref)
            case Upserted(ref, object_):
                self.refused.pop((ref.kind, ref.namespace, ref.name), None)
                self._upsert(object_)

    def apply_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self.apply(event)

    def take_touched(self) -> Touched:
        """What has changed since this was last called."""
        touched, self.touched = self.touched, Touched()
        return touched

    def policies_of(self, pod: Pod) -> list[NetworkPolicy]:
        """Those that select `pod`, by name, whether or not it counts."""
        labels = dict(pod.labels)
        candidates = self.policies.get(pod.key.namespace, {})
        return [policy for _, policy in sorted(candidates.items()) if policy.pods.matches(labels)]

    def namespace_matches(self, selector: Selector, name: str) -> bool:
        """True if a namespaceSelector selects the Namespace `name`. Of one that is not known only the name counts: its
        other labels could be anything, so no requirement about them is met.
        """
        namespace = self.namespaces.get(name)
        if namespace is not None:
            return selector.matches(dict(namespace.labels))
        return all(each.key == LABEL_NAMESPACE_NAME and each.is_met({each.key: name}) for each in selector.requirements)

    def _upsert(self, object_: object) -> None:
        match object_:
            case NetworkPolicy(key):
                policies = self.policies.setdefault(key.namespace, {})
                if policies.get(key.name) != object_:
                    policies[key.name] = object_
                    self.touched.policies.add(key)
            case Namespace(name):
                if self.namespaces.get(name) != object_:
                    self.namespaces[name] = object_
                    self.touched.namespaces.add(name)
            case Pod(key):
                if self.pods.get(key) != object_:
                    self.pods[key] = object_
                    self.touched.pods.add(key)

    def _remove(self, ref: ObjectRef) -> None:
        match ref.kind:
            case Kind.NETWORK_POLICY:
                policies = self.policies.get(ref.namespace, {})
                if policies.pop(ref.name, None) is not None:
                    self.touched.policies.add(PolicyName(ref.namespace, ref.name))
                    if not policies:
                        del self.policies[ref.namespace]
            case Kind.NAMESPACE:
                if self.namespaces.pop(ref.name, None) is not None:
                    self.touched.namespaces.add(ref.name)
            case Kind.POD:
                if self.pods.pop(key := PodName(ref.namespace, ref.name), None) is not None:
                    self.touched.pods.add(key)
