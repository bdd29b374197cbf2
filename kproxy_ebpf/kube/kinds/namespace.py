"""Namespaces (v1): their labels, which policies select them by. The server need not send more than metadata."""

from __future__ import annotations

from sys import intern

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from kproxy_ebpf.kube.kinds.common import ApiKind, Scope, shared_labels
from kproxy_ebpf.kube.wire import Metadata
from kproxy_ebpf.model.policies import LABEL_NAMESPACE_NAME, Namespace
from kproxy_ebpf.model.snapshot import Kind, Unreadable


class NamespaceObject(TypedDict):
    metadata: Metadata


def namespace_of(obj: NamespaceObject, _: Scope) -> Namespace:
    """The Namespace. A manifest need not have the label that the API server gives every Namespace, by its name."""
    metadata = obj["metadata"]
    name = intern(metadata["name"])
    return Namespace(name, shared_labels({**(metadata.get("labels") or {}), LABEL_NAMESPACE_NAME: name}))


NAMESPACE = ApiKind(
    kind=Kind.NAMESPACE,
    api_version="v1",
    path="/api/v1/namespaces",
    shape=NamespaceObject,
    convert=namespace_of,
    unreadable=Unreadable.ABSENT,
    is_namespaced=False,
)
