"""The Node (v1) that the daemon runs on, for topology and health."""

from __future__ import annotations

from sys import intern
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from kproxy_ebpf.kube.addresses import packed_ip
from kproxy_ebpf.kube.kinds.common import ApiKind, Scope
from kproxy_ebpf.kube.wire import Metadata
from kproxy_ebpf.model.services import Node, family_of
from kproxy_ebpf.model.snapshot import Kind, Unreadable

LABEL_ZONE = "topology.kubernetes.io/zone"
TAINT_TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"


class Taint(TypedDict):
    key: str


class NodeSpec(TypedDict):
    taints: NotRequired[list[Taint] | None]


class NodeAddress(TypedDict):
    type: str
    address: str


class NodeStatus(TypedDict):
    addresses: NotRequired[list[NodeAddress] | None]


class NodeObject(TypedDict):
    metadata: Metadata
    spec: NotRequired[NodeSpec | None]
    status: NotRequired[NodeStatus | None]


def node_of(obj: NodeObject, _: Scope) -> Node:
    """The Node. Raises Refusal. `addresses` are the node's primary ones, the first of each family, InternalIP before
    ExternalIP: upstream serves NodePorts on these by default. On the others a packet falls through to kube-proxy.
    """
    metadata = obj["metadata"]
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    primary: dict[int, bytes] = {}
    listed = list(enumerate(status.get("addresses") or ()))
    for wanted in ("InternalIP", "ExternalIP"):
        for index, entry in listed:
            if entry["type"] == wanted:
                address = packed_ip(f"status.addresses[{index}].address", entry["address"])
                primary.setdefault(family_of(address), address)
    tainted = any(taint["key"] == TAINT_TO_BE_DELETED for taint in spec.get("taints") or ())
    return Node(
        name=metadata["name"],
        zone=intern((metadata.get("labels") or {}).get(LABEL_ZONE, "")),
        addresses=tuple(primary.values()),
        eligible=not metadata.get("deletionTimestamp") and not tainted,
    )


NODE = ApiKind(
    kind=Kind.NODE,
    api_version="v1",
    path="/api/v1/nodes",
    shape=NodeObject,
    convert=node_of,
    unreadable=Unreadable.ABSENT,
    only=lambda scope: scope.node_name,
    is_namespaced=False,
    optional=True,
)
