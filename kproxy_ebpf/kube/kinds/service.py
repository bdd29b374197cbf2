"""Services (v1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from sys import intern
from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from kproxy_ebpf.errors import quoted
from kproxy_ebpf.kube.addresses import (
    PartialRefusal,
    Refusal,
    is_never_frontend,
    ordinary_ips,
    packed_ip,
    refused,
    source_ranges,
)
from kproxy_ebpf.kube.kinds.common import ApiKind, Scope, no_duplicates, service_name
from kproxy_ebpf.kube.wire import Metadata, PortNumber, PortNumberOrZero, ProtocolName
from kproxy_ebpf.model.services import Protocol, Service, ServicePort, TrafficPolicy, family_of
from kproxy_ebpf.model.snapshot import Kind, Unreadable

LABEL_PROXY_NAME = "service.kubernetes.io/service-proxy-name"
DEFAULT_AFFINITY_SECONDS = 10800


class WirePort(TypedDict):
    port: PortNumber
    name: NotRequired[str | None]
    protocol: NotRequired[ProtocolName | None]
    nodePort: NotRequired[PortNumberOrZero | None]


class ClientIPConfig(TypedDict):
    timeoutSeconds: NotRequired[Annotated[int, Field(ge=1, le=86400)] | None]


class AffinityConfig(TypedDict):
    clientIP: NotRequired[ClientIPConfig | None]


class ServiceSpec(TypedDict):
    type: NotRequired[str | None]
    clusterIP: NotRequired[str | None]
    clusterIPs: NotRequired[list[str] | None]
    ports: NotRequired[list[WirePort] | None]
    externalIPs: NotRequired[list[str] | None]
    loadBalancerSourceRanges: NotRequired[list[str] | None]
    sessionAffinity: NotRequired[str | None]
    sessionAffinityConfig: NotRequired[AffinityConfig | None]
    internalTrafficPolicy: NotRequired[str | None]
    externalTrafficPolicy: NotRequired[str | None]
    publishNotReadyAddresses: NotRequired[bool | None]


class Ingress(TypedDict):
    ip: NotRequired[str | None]
    ipMode: NotRequired[str | None]


class LoadBalancerStatus(TypedDict):
    ingress: NotRequired[list[Ingress] | None]


class ServiceStatus(TypedDict):
    loadBalancer: NotRequired[LoadBalancerStatus | None]


class ServiceObject(TypedDict):
    metadata: Metadata
    spec: ServiceSpec
    status: NotRequired[ServiceStatus | None]


def service_of(obj: ServiceObject, scope: Scope) -> Service | None:
    """The Service, None for one that a proxy skips.

    Raises Refusal, or PartialRefusal when only externalIPs or IPs of the load balancer are refused.
    """
    metadata, spec = obj["metadata"], obj["spec"]
    labels = metadata.get("labels") or {}
    if LABEL_PROXY_NAME in labels and (not scope.proxy_name or labels[LABEL_PROXY_NAME] != scope.proxy_name):
        return None
    if spec.get("clusterIP") in (None, "", "None") or spec.get("type") == "ExternalName":
        return None
    unfit: list[Refusal] = []
    service = Service(
        key=service_name(metadata, metadata["name"]),
        cluster_ips=_cluster_ips(spec),
        ports=_service_ports(spec),
        type=intern(spec.get("type") or "ClusterIP"),
        external_ips=_outer_ips(_external_ips(spec), unfit),
        load_balancer_ips=_outer_ips(_load_balancer_ips(obj.get("status") or {}), unfit),
        source_ranges=source_ranges(spec.get("loadBalancerSourceRanges") or ()),
        affinity_seconds=_affinity_seconds(spec),
        internal_traffic_policy=_policy(spec.get("internalTrafficPolicy")),
        external_traffic_policy=_policy(spec.get("externalTrafficPolicy")),
        publish_not_ready=bool(spec.get("publishNotReadyAddresses")),
        created=metadata.get("creationTimestamp") or "",
        uid=metadata.get("uid") or "",
    )
    if unfit:
        raise PartialRefusal("; ".join(map(str, unfit)), service)
    return service


def _cluster_ips(spec: ServiceSpec) -> tuple[bytes, ...]:
    """One VIP per family at most; `clusterIPs` is absent from hand-written manifests and very old servers."""
    primary = spec.get("clusterIP") or ""
    texts = spec.get("clusterIPs") or [primary]
    if texts[0] != primary:
        raise refused("spec.clusterIPs[0]", texts[0], f"differs from spec.clusterIP {quoted(primary)}")
    addresses = ordinary_ips("spec.clusterIPs", texts)
    if len({family_of(address) for address in addresses}) != len(texts):
        raise Refusal("spec.clusterIPs: more than one address of a family")
    return addresses


def _service_ports(spec: ServiceSpec) -> tuple[ServicePort, ...]:
    ports = tuple(
        ServicePort(
            name=intern(port.get("name") or ""),
            protocol=Protocol[port.get("protocol") or "TCP"],
            port=port["port"],
            node_port=port.get("nodePort") or 0,
        )
        for port in spec.get("ports") or ()
    )
    if not ports:
        raise Refusal("spec.ports: a Service needs at least one port")
    no_duplicates("spec.ports", "name", [port.name for port in ports])
    no_duplicates("spec.ports", "port", [f"{port.port}/{port.protocol.name}" for port in ports])
    node_ports = [f"{port.node_port}/{port.protocol.name}" for port in ports if port.node_port]
    no_duplicates("spec.ports", "nodePort", node_ports)
    return ports


def _external_ips(spec: ServiceSpec) -> Iterator[tuple[str, str]]:
    """Field and text of each."""
    return ((f"spec.externalIPs[{index}]", text) for index, text in enumerate(spec.get("externalIPs") or ()))


def _load_balancer_ips(status: ServiceStatus) -> Iterator[tuple[str, str]]:
    """Field and text of each entry with an IP and ipMode absent or VIP; Proxy, and a mode not invented yet, are not
    programmed.
    """
    ingress = (status.get("loadBalancer") or {}).get("ingress") or ()
    for index, entry in enumerate(ingress):
        if (text := entry.get("ip")) and entry.get("ipMode") in (None, "VIP"):
            yield f"status.loadBalancer.ingress[{index}].ip", text


def _outer_ips(texts: Iterable[tuple[str, str]], unfit: list[Refusal]) -> tuple[bytes, ...]:
    """Addresses that anybody may have written into an object. Those that may never be a frontend are left out, and
    appended to `unfit`: every pod's own loopback would be the Service's. Raises Refusal for what is no address.
    """
    addresses = []
    for where, text in texts:
        address = packed_ip(where, text)
        if is_never_frontend(address):
            unfit.append(refused(where, text, "is loopback, unspecified, multicast or link-local: it is not served"))
        else:
            addresses.append(address)
    return tuple(dict.fromkeys(addresses))


def _affinity_seconds(spec: ServiceSpec) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    client_ip = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    return client_ip.get("timeoutSeconds") or DEFAULT_AFFINITY_SECONDS


def _policy(text: str | None) -> TrafficPolicy:
    """Anything but Local counts as Cluster, upstream's reading of an unknown value."""
    return TrafficPolicy.LOCAL if text == "Local" else TrafficPolicy.CLUSTER


def _label_selector(scope: Scope) -> str:
    """With a proxy name of our own the server can't select ("no label or ours"), so `service_of` does."""
    return "" if scope.proxy_name else f"!{LABEL_PROXY_NAME}"


SERVICE = ApiKind(
    kind=Kind.SERVICE,
    api_version="v1",
    path="/api/v1/services",
    shape=ServiceObject,
    convert=service_of,
    unreadable=Unreadable.ABSENT,
    label_selector=_label_selector,
)
