"""The cluster as watched, and the events that change it.

A source (kube/) yields events; `Snapshot.apply` folds one in and returns the Services whose plan it may change. An
event carries the whole object, so a lost or repeated event does no harm once a later one arrives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from kproxy_ebpf.model.policies import Namespace, NetworkPolicy, Pod
from kproxy_ebpf.model.services import EndpointSlice, Node, Service, ServiceName


class Kind(StrEnum):
    """The kinds that can be read, as the API names them. FILE stands for a manifest whose objects nobody can name: it
    is only ever refused or removed, never synced.
    """

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"
    NETWORK_POLICY = "NetworkPolicy"
    NAMESPACE = "Namespace"
    POD = "Pod"
    FILE = "File"


POLICY_KINDS = frozenset({Kind.NETWORK_POLICY, Kind.NAMESPACE, Kind.POD})
"""What model/policy_snapshot.py is made of. The daemon does not watch them."""
WATCHED_KINDS = frozenset(Kind) - POLICY_KINDS - {Kind.FILE}
"""Every source tells Synced for each of these: the rows of KINDS (kube/kinds)."""


class Unreadable(StrEnum):
    """What an object that can't be read means, in words for the log. Each kind says it (kube/kinds).

    ABSENT: nothing is left of what it said before. KEPT: what it said before stays in force. CLOSED: a policy of which
    nothing can be read isolates its namespace. IN_PART: only some of it can't be read; the rest came as an Upserted
    just before.
    """

    ABSENT = "refused, it counts as absent"
    KEPT = "refused, what it said before stays in force"
    CLOSED = "refused, it isolates every pod of its namespace and admits nothing"
    IN_PART = "refused in part, the rest is in force"


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """Names one object in logs, metrics, `status` and Kubernetes Events. `origin` is a file name for manifests."""

    kind: Kind
    namespace: str
    name: str
    uid: str = ""
    origin: str = ""

    def __str__(self) -> str:
        name = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {name}" + (f" ({self.origin})" if self.origin else "")


Known = Service | EndpointSlice | Node | NetworkPolicy | Namespace | Pod
"""What the objects of all kinds become."""


@dataclass(frozen=True, slots=True)
class Upserted:
    """An object that counts appeared or changed. A Refused for the same ref before it is void."""

    ref: ObjectRef
    object: Known


@dataclass(frozen=True, slots=True)
class Removed:
    """An object is gone, or no longer one that a proxy serves (it turned headless, say)."""

    ref: ObjectRef


@dataclass(frozen=True, slots=True)
class Refused:
    """An object can't be read, and counts as `means` says; all others work."""

    ref: ObjectRef
    reason: str
    means: Unreadable


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything of this kind that existed when the watch began has been yielded."""

    kind: Kind


Event = Upserted | Removed | Refused | Synced


@dataclass(slots=True)
class Snapshot:
    """What is known of Services, slices and this node. Only `apply` changes it."""

    services: dict[ServiceName, Service] = field(default_factory=dict)
    slices: dict[ServiceName, dict[str, EndpointSlice]] = field(default_factory=dict)
    node: Node | None = None
    refused: dict[tuple[Kind, str, str], Refused] = field(default_factory=dict)
    synced: set[Kind] = field(default_factory=set)
    _slice_owner: dict[tuple[str, str], ServiceName] = field(default_factory=dict)

    def apply(self, event: Event) -> Iterable[ServiceName]:
        """Fold `event` in; return the Services whose plan it may change."""
        match event:
            case Synced(kind):
                self.synced.add(kind)
                return ()
            case Refused(ref, _, means):
                self.refused[ref.kind, ref.namespace, ref.name] = event
                return self._remove(ref) if means is Unreadable.ABSENT else ()
            case Removed(ref):
                self.refused.pop((ref.kind, ref.namespace, ref.name), None)
                return self._remove(ref)
            case Upserted(ref, object_):
                self.refused.pop((ref.kind, ref.namespace, ref.name), None)
                return self._upsert(object_)

    def _upsert(self, object_: Known) -> Iterable[ServiceName]:
        match object_:
            case Service():
                if self.services.get(object_.key) == object_:
                    return ()
                self.services[object_.key] = object_
                return (object_.key,)
            case EndpointSlice():
                return self._upsert_slice(object_)
            case Node():
                changed = self.node != object_
                self.node = object_
                return tuple(self.services) if changed else ()
            case NetworkPolicy() | Namespace() | Pod():
                return ()

    def _upsert_slice(self, slice_: EndpointSlice) -> Iterable[ServiceName]:
        if self.slices.get(slice_.service, {}).get(slice_.name) == slice_:
            return ()
        dirty = {slice_.service}
        previous = self._slice_owner.get((slice_.namespace, slice_.name))
        if previous is not None and previous != slice_.service:
            dirty.add(previous)
            self._drop_slice(slice_.namespace, slice_.name)
        self.slices.setdefault(slice_.service, {})[slice_.name] = slice_
        self._slice_owner[slice_.namespace, slice_.name] = slice_.service
        return dirty

    def _remove(self, ref: ObjectRef) -> Iterable[ServiceName]:
        match ref.kind:
            case Kind.SERVICE:
                key = ServiceName(ref.namespace, ref.name)
                return (key,) if self.services.pop(key, None) else ()
            case Kind.ENDPOINT_SLICE:
                owner = self._drop_slice(ref.namespace, ref.name)
                return (owner,) if owner else ()
            case _:
                return ()

    def _drop_slice(self, namespace: str, name: str) -> ServiceName | None:
        owner = self._slice_owner.pop((namespace, name), None)
        if owner is not None:
            remaining = self.slices[owner]
            remaining.pop(name, None)
            if not remaining:
                del self.slices[owner]
        return owner
