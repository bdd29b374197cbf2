"""API JSON to the model's objects. What a proxy must skip becomes None, what can't be read raises `Refusal`.

The rules are upstream kube-proxy's (pkg/proxy: serviceport.go, endpointslicecache.go, util) and, where a manifest has
no API server before it, the API's validation (pkg/apis/core/validation, pkg/apis/discovery/validation).

An `obj` is the JSON of one object, as bytes or already decoded; it is validated strictly (no "80" for 80).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from socket import AF_INET, AF_INET6, inet_pton
from sys import intern
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from kproxy_ebpf.kube import wire
from kproxy_ebpf.kube.addresses import Refusal, is_special, ordinary_ips, packed_ip, refused, source_ranges
from kproxy_ebpf.model.services import (
    Endpoint,
    EndpointSlice,
    Node,
    Protocol,
    Service,
    ServiceName,
    ServicePort,
    SlicePort,
    TrafficPolicy,
    family_of,
)

LABEL_PROXY_NAME = "service.kubernetes.io/service-proxy-name"
LABEL_HEADLESS = "service.kubernetes.io/headless"
LABEL_SERVICE = "kubernetes.io/service-name"
LABEL_ZONE = "topology.kubernetes.io/zone"
TAINT_TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"
ANNOTATION_TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
DEFAULT_NAMESPACE = "default"
DEFAULT_AFFINITY_SECONDS = 10800

_FAMILIES = {"IPv4": (4, AF_INET), "IPv6": (6, AF_INET6)}
_SPECIAL_FIRST_BYTES = {4: frozenset({0, 127, 169, 224}), 6: frozenset({0, 0xFE, 0xFF})}

T = TypeVar("T")


def parse_service(obj: Mapping[str, Any] | bytes, proxy_name: str = "") -> Service | None:
    """The Service, None for one that a proxy skips. `proxy_name` is our own value of the service-proxy-name label.

    Raises Refusal.
    """
    return service_of(_validated(wire.SERVICE, obj), proxy_name)


def parse_slice(obj: Mapping[str, Any] | bytes) -> EndpointSlice | None:
    """The EndpointSlice, None for one that a proxy skips. Raises Refusal."""
    return slice_of(_validated(wire.SLICE, obj))


def parse_node(obj: Mapping[str, Any] | bytes) -> Node:
    """The Node. Raises Refusal."""
    return node_of(_validated(wire.NODE, obj))


def service_of(obj: wire.ServiceObject, proxy_name: str = "") -> Service | None:
    """As `parse_service`, for an object whose shape is known to be right."""
    metadata, spec = obj["metadata"], obj["spec"]
    labels = metadata.get("labels") or {}
    if LABEL_PROXY_NAME in labels and (not proxy_name or labels[LABEL_PROXY_NAME] != proxy_name):
        return None
    if spec.get("clusterIP") in (None, "", "None") or spec.get("type") == "ExternalName":
        return None
    return Service(
        key=_service_name(metadata, metadata["name"]),
        cluster_ips=_cluster_ips(spec),
        ports=_service_ports(spec),
        type=intern(spec.get("type") or "ClusterIP"),
        external_ips=ordinary_ips("spec.externalIPs", spec.get("externalIPs") or ()),
        load_balancer_ips=_load_balancer_ips(obj.get("status") or {}),
        source_ranges=source_ranges(spec.get("loadBalancerSourceRanges") or ()),
        affinity_seconds=_affinity_seconds(spec),
        internal_traffic_policy=_policy(spec.get("internalTrafficPolicy")),
        external_traffic_policy=_policy(spec.get("externalTrafficPolicy")),
        publish_not_ready=bool(spec.get("publishNotReadyAddresses")),
        created=metadata.get("creationTimestamp") or "",
        uid=metadata.get("uid") or "",
    )


def slice_of(obj: wire.SliceObject) -> EndpointSlice | None:
    """As `parse_slice`, for an object whose shape is known to be right. An addressType other than IPv4 and IPv6 (FQDN,
    or one not invented yet) is skipped, as upstream does.
    """
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    service = labels.get(LABEL_SERVICE)
    if not service or LABEL_HEADLESS in labels or obj["addressType"] not in _FAMILIES:
        return None
    name = _service_name(metadata, service)
    return EndpointSlice(
        namespace=name.namespace,
        name=metadata["name"],
        service=name,
        family=_FAMILIES[obj["addressType"]][0],
        ports=_slice_ports(obj.get("ports") or ()),
        endpoints=_endpoints(obj["addressType"], obj.get("endpoints") or ()),
        trigger_time=_seconds_since_epoch((metadata.get("annotations") or {}).get(ANNOTATION_TRIGGER_TIME)),
    )


def node_of(obj: wire.NodeObject) -> Node:
    """As `parse_node`. `addresses` are the node's primary ones, the first of each family, InternalIP before ExternalIP:
    what upstream serves NodePorts on by default; on the others a packet falls through to the node's kube-proxy.
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


def config_map_of(obj: wire.ConfigMapObject) -> dict[str, str]:
    """A ConfigMap's data."""
    return obj.get("data") or {}


def _validated(adapter: TypeAdapter[T], obj: Mapping[str, Any] | bytes) -> T:
    try:
        if isinstance(obj, bytes):
            return adapter.validate_json(obj, strict=True)
        return adapter.validate_python(obj, strict=True)
    except ValidationError as error:
        raise Refusal(wire.reason_of(error)) from None


def _service_name(metadata: wire.Metadata, name: str) -> ServiceName:
    return ServiceName(intern(metadata.get("namespace") or DEFAULT_NAMESPACE), name)


def _cluster_ips(spec: wire.ServiceSpec) -> tuple[bytes, ...]:
    """One VIP per family at most; `clusterIPs` is absent from hand-written manifests and very old servers."""
    primary = spec.get("clusterIP") or ""
    texts = spec.get("clusterIPs") or [primary]
    if texts[0] != primary:
        raise refused("spec.clusterIPs[0]", texts[0], f"differs from spec.clusterIP {primary!r:.60}")
    addresses = ordinary_ips("spec.clusterIPs", texts)
    if len({family_of(address) for address in addresses}) != len(texts):
        raise Refusal("spec.clusterIPs: more than one address of a family")
    return addresses


def _service_ports(spec: wire.ServiceSpec) -> tuple[ServicePort, ...]:
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
    _no_duplicates("spec.ports", "name", [port.name for port in ports])
    _no_duplicates("spec.ports", "port", [f"{port.port}/{port.protocol.name}" for port in ports])
    node_ports = [f"{port.node_port}/{port.protocol.name}" for port in ports if port.node_port]
    _no_duplicates("spec.ports", "nodePort", node_ports)
    return ports


def _no_duplicates(where: str, what: str, values: list[str]) -> None:
    if len(set(values)) != len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise refused(where, twice, f"is there twice as a {what}")


def _load_balancer_ips(status: wire.ServiceStatus) -> tuple[bytes, ...]:
    """Entries with an IP and ipMode absent or VIP; Proxy, and a mode not invented yet, are not programmed."""
    ingress = (status.get("loadBalancer") or {}).get("ingress") or ()
    addresses = (
        packed_ip(f"status.loadBalancer.ingress[{index}].ip", entry.get("ip") or "")
        for index, entry in enumerate(ingress)
        if entry.get("ip") and entry.get("ipMode") in (None, "VIP")
    )
    return tuple(dict.fromkeys(addresses))


def _affinity_seconds(spec: wire.ServiceSpec) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    client_ip = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    return client_ip.get("timeoutSeconds") or DEFAULT_AFFINITY_SECONDS


def _policy(text: str | None) -> TrafficPolicy:
    """Anything but Local counts as Cluster, upstream's reading of an unknown value."""
    return TrafficPolicy.LOCAL if text == "Local" else TrafficPolicy.CLUSTER


def _slice_ports(ports: list[wire.WireSlicePort] | tuple[wire.WireSlicePort, ...]) -> tuple[SlicePort, ...]:
    """Names are unique in a slice; a nil or zero port is ignored."""
    _no_duplicates("ports", "name", [port.get("name") or "" for port in ports])
    return tuple(
        SlicePort(intern(port.get("name") or ""), Protocol[port.get("protocol") or "TCP"], number)
        for port in ports
        if (number := port.get("port"))
    )


def _endpoints(
    address_type: str, endpoints: list[wire.WireEndpoint] | tuple[wire.WireEndpoint, ...]
) -> tuple[Endpoint, ...]:
    """The hot loop of a start: 200,000 endpoints pass here, so shared values are looked up, not made again."""
    family, af = _FAMILIES[address_type]
    suspects = _SPECIAL_FIRST_BYTES[family]
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    result = []
    for index, wired in enumerate(endpoints):
        addresses = wired.get("addresses")
        if not addresses:
            continue
        try:
            address = inet_pton(af, addresses[0])
        except (OSError, ValueError):
            raise refused(
                f"endpoints[{index}].addresses[0]", addresses[0], f"is not an {address_type} address"
            ) from None
        if address[0] in suspects:
            _check_endpoint_address(index, addresses[0])
        conditions = wired.get("conditions") or {}
        hints = wired.get("hints")
        result.append(
            Endpoint(
                address,
                conditions.get("ready") is not False,
                conditions.get("serving") is not False,
                conditions.get("terminating") is True,
                intern(wired.get("nodeName") or ""),
                _hint_names(shared, hints.get("forZones")) if hints else (),
                _hint_names(shared, hints.get("forNodes")) if hints else (),
            )
        )
    return tuple(result)


def _check_endpoint_address(index: int, text: str) -> None:
    where = f"endpoints[{index}].addresses[0]"
    if is_special(packed_ip(where, text)):
        raise refused(where, text, "is unspecified, loopback or link-local")


def _hint_names(shared: dict[tuple[str, ...], tuple[str, ...]], hints: list[wire.Hint] | None) -> tuple[str, ...]:
    names = tuple(intern(hint["name"]) for hint in hints or ())
    return shared.setdefault(names, names)


def _seconds_since_epoch(text: str | None) -> float:
    """0.0 for no or an unreadable time: the annotation feeds a metric only."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0.0
    except ValueError:
        return 0.0
