"""Services and EndpointSlices, reduced to what a proxy needs.

Addresses are packed bytes in network byte order (4 for IPv4, 16 for IPv6); ports are plain integers. Objects that
a proxy must skip (headless, ExternalName, another proxy's) never become a `Service`: kube/kinds/ drops them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from ipaddress import ip_address, ip_network
from typing import NamedTuple


class Protocol(IntEnum):
    """The IP protocol number (IANA)."""

    TCP = 6
    UDP = 17
    SCTP = 132


class TrafficPolicy(StrEnum):
    CLUSTER = "Cluster"
    LOCAL = "Local"


class ServiceName(NamedTuple):
    """The key of a Service."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class SourceRange:
    """One entry of loadBalancerSourceRanges."""

    network: bytes
    prefix_bits: int


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service. `node_port` is 0 where none is allocated."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A Service that is to be proxied.

    `load_balancer_ips` holds the ingress IPs to be programmed (not those with ipMode Proxy). `affinity_seconds` is 0
    without ClientIP affinity. `created` is metadata.creationTimestamp (RFC 3339), "" where unknown: of two Services
    that claim one frontend the older wins.
    """

    key: ServiceName
    cluster_ips: tuple[bytes, ...]
    ports: tuple[ServicePort, ...]
    type: str = "ClusterIP"
    external_ips: tuple[bytes, ...] = ()
    load_balancer_ips: tuple[bytes, ...] = ()
    source_ranges: tuple[SourceRange, ...] = ()
    affinity_seconds: int = 0
    internal_traffic_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_traffic_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    publish_not_ready: bool = False
    created: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True)
class SlicePort:
    """A port of an EndpointSlice; a nil or zero port never gets here."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of a slice: `addresses[0]` and its conditions (nil already resolved as the API documents)."""

    address: bytes
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str = ""
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """An EndpointSlice of one address family. `trigger_time` is the annotation
    endpoints.kubernetes.io/last-change-trigger-time as seconds since the epoch, 0.0 where absent.
    """

    namespace: str
    name: str
    service: ServiceName
    family: int
    ports: tuple[SlicePort, ...]
    endpoints: tuple[Endpoint, ...]
    trigger_time: float = 0.0


@dataclass(frozen=True, slots=True)
class Node:
    """This node, as topology and health need it. `addresses` are its NodePort addresses."""

    name: str
    zone: str = ""
    addresses: tuple[bytes, ...] = ()
    eligible: bool = True


def packed(text: str) -> bytes:
    """The packed form of an IP address. Raises ValueError for anything else."""
    return ip_address(text).packed


def text_of(address: bytes) -> str:
    """The text form of a packed address."""
    return str(ip_address(address))


def family_of(address: bytes) -> int:
    """4 or 6."""
    return 4 if len(address) == 4 else 6


def source_range(text: str) -> SourceRange:
    """A CIDR as kube-proxy reads it: blanks trimmed, host bits ignored. Raises ValueError."""
    network = ip_network(text.strip(), strict=False)
    return SourceRange(network.network_address.packed, network.prefixlen)
