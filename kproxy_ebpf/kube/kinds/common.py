"""What all kinds share: how a kind is described, and how the JSON of one of its objects becomes the model's object.

The rules are upstream kube-proxy's (pkg/proxy: serviceport.go, endpointslicecache.go, util) and, where a manifest has
no API server before it, the API's validation (pkg/apis/core/validation, pkg/apis/discovery/validation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from socket import AF_INET, AF_INET6
from sys import intern
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from kproxy_ebpf.kube import wire
from kproxy_ebpf.kube.addresses import PartialRefusal, Refusal, refused
from kproxy_ebpf.kube.stream import Resource
from kproxy_ebpf.model.policies import Labels, labels_of
from kproxy_ebpf.model.services import ServiceName
from kproxy_ebpf.model.snapshot import Kind, ObjectRef, Refused, Unreadable, Upserted

DEFAULT_NAMESPACE = "default"
FAMILIES = {"IPv4": (4, AF_INET), "IPv6": (6, AF_INET6)}
"""By addressType: the family as the model counts it, and as the socket module names it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scope:
    """Who reads the cluster: the daemon of `node_name`. `proxy_name` is our own value of the label
    service.kubernetes.io/service-proxy-name, "" where Services without the label are ours.
    """

    node_name: str = ""
    proxy_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKind(Generic[T]):
    """A kind of the API. `shape` is the TypedDict of its JSON, as far as it is read.

    `convert` gets an object of that shape; it returns None for an object that a proxy skips, and raises Refusal for one
    that it can't read. `label_selector` says what the server may leave out. `only` names the one object that is read,
    where not all are. `optional`: the daemon works without a right to read this kind.
    """

    kind: Kind
    api_version: str
    path: str
    shape: type
    convert: Callable[[Any, Scope], T | None]
    unreadable: Unreadable
    label_selector: Callable[[Scope], str] = lambda _: ""
    only: Callable[[Scope], str | None] = lambda _: None
    is_namespaced: bool = True
    optional: bool = False

    def resource(self, scope: Scope) -> Resource[T]:
        """What to ask the API server for."""
        query = []
        if labels := self.label_selector(scope):
            query.append(("labelSelector", labels))
        if (name := self.only(scope)) is not None:
            query.append(("fieldSelector", f"metadata.name={name}"))
        return Resource(
            self.path, self.shape, lambda obj: self._read(obj, scope), query=tuple(query), optional=self.optional
        )

    def parse(self, obj: Mapping[str, Any] | bytes, scope: Scope | None = None) -> T | None:
        """Read the JSON of one object, as bytes or decoded, strictly (no "80" for 80); None for one that a proxy skips.

        Raises Refusal.
        """
        adapter = _adapter(self.shape)
        try:
            if isinstance(obj, bytes):
                valid = adapter.validate_json(obj, strict=True)
            else:
                valid = adapter.validate_python(obj, strict=True)
        except ValidationError as error:
            raise Refusal(wire.reason_of(error)) from None
        except RecursionError:
            raise Refusal("nested too deep") from None
        return self._read(valid, scope or Scope())

    def refusal(self, ref: ObjectRef, refusal: Refusal) -> tuple[Upserted | Refused, ...]:
        """What to tell of an object of this kind that can't be read, or only in part."""
        if isinstance(refusal, PartialRefusal):
            return Upserted(ref, refusal.rest), Refused(ref, str(refusal), Unreadable.IN_PART)
        return (Refused(ref, str(refusal), self.unreadable),)

    def _read(self, obj: Any, scope: Scope) -> T | None:
        """`convert`, with an object that it stumbles over refused: no object is worth the daemon's end."""
        try:
            return self.convert(obj, scope)
        except Refusal:
            raise
        except Exception as error:
            raise Refusal(wire.one_line(f"it can't be read: {type(error).__name__}: {error}")) from error


@cache
def _adapter(shape: type) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def service_name(metadata: wire.Metadata, name: str) -> ServiceName:
    """The key of the Service `name` in the namespace of the object with this `metadata`."""
    return ServiceName(intern(metadata.get("namespace") or DEFAULT_NAMESPACE), name)


def shared_labels(labels: Mapping[str, str]) -> Labels:
    """Labels as the model has them; those of the pods of one workload are one object."""
    return _shared(labels_of({intern(key): intern(value) for key, value in labels.items()}))


@lru_cache(maxsize=8192)
def _shared(labels: Labels) -> Labels:
    return labels


def no_duplicates(where: str, what: str, values: Sequence[str]) -> None:
    """Raises Refusal when a value is there twice. `where` is the field, `what` says what the values are."""
    if len(set(values)) != len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise refused(where, twice, f"is there twice as a {what}")
