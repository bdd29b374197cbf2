"""Pods (v1), as network policies see them: labels, addresses, named ports, and whether they still count."""

from __future__ import annotations

from collections.abc import Iterator
from sys import intern
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from kproxy_ebpf.kube.addresses import packed_ip
from kproxy_ebpf.kube.kinds.common import DEFAULT_NAMESPACE, ApiKind, Scope, shared_labels
from kproxy_ebpf.kube.wire import Metadata, PortNumber, ProtocolName
from kproxy_ebpf.model.policies import ContainerPort, Pod, PodName
from kproxy_ebpf.model.services import Protocol
from kproxy_ebpf.model.snapshot import Kind, Unreadable

OVER = frozenset({"Succeeded", "Failed"})


class WireContainerPort(TypedDict):
    containerPort: PortNumber
    name: NotRequired[str | None]
    protocol: NotRequired[ProtocolName | None]


class Container(TypedDict):
    ports: NotRequired[list[WireContainerPort] | None]
    restartPolicy: NotRequired[str | None]


class PodSpec(TypedDict):
    nodeName: NotRequired[str | None]
    hostNetwork: NotRequired[bool | None]
    containers: NotRequired[list[Container] | None]
    initContainers: NotRequired[list[Container] | None]


class PodIP(TypedDict):
    ip: NotRequired[str | None]


class PodStatus(TypedDict):
    phase: NotRequired[str | None]
    podIP: NotRequired[str | None]
    podIPs: NotRequired[list[PodIP] | None]


class PodObject(TypedDict):
    metadata: Metadata
    spec: NotRequired[PodSpec | None]
    status: NotRequired[PodStatus | None]


def pod_of(obj: PodObject, _: Scope) -> Pod:
    """The Pod. Raises Refusal."""
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    return Pod(
        key=PodName(intern(metadata.get("namespace") or DEFAULT_NAMESPACE), metadata["name"]),
        labels=shared_labels(metadata.get("labels") or {}),
        addresses=_addresses(status),
        ports=_named_ports(spec),
        node_name=intern(spec.get("nodeName") or ""),
        host_network=bool(spec.get("hostNetwork")),
        is_over=status.get("phase") in OVER,
        is_terminating=bool(metadata.get("deletionTimestamp")),
        created=metadata.get("creationTimestamp") or "",
        uid=metadata.get("uid") or "",
    )


def _addresses(status: PodStatus) -> tuple[bytes, ...]:
    """`podIPs` is absent from very old servers."""
    texts = [each.get("ip") for each in status.get("podIPs") or ()] or [status.get("podIP")]
    addresses = (packed_ip(f"status.podIPs[{index}].ip", text) for index, text in enumerate(texts) if text)
    return tuple(dict.fromkeys(addresses))


def _named_ports(spec: PodSpec) -> tuple[ContainerPort, ...]:
    """Of two ports with a name and a protocol in common the first counts, as upstream's FindPort has it."""
    found: dict[tuple[str, Protocol], ContainerPort] = {}
    for container in _lasting(spec):
        for wired in container.get("ports") or ():
            if name := wired.get("name"):
                port = ContainerPort(intern(name), Protocol[wired.get("protocol") or "TCP"], wired["containerPort"])
                found.setdefault((port.name, port.protocol), port)
    return tuple(found.values())


def _lasting(spec: PodSpec) -> Iterator[Container]:
    """Containers that run while the pod does: of the init containers those that are restarted (sidecars)."""
    yield from spec.get("containers") or ()
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            yield container


POD = ApiKind(
    kind=Kind.POD,
    api_version="v1",
    path="/api/v1/pods",
    shape=PodObject,
    convert=pod_of,
    unreadable=Unreadable.ABSENT,
)
