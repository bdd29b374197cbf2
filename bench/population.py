"""Fills the API server with Services and EndpointSlices, over several kept-alive connections at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPSConnection
from ipaddress import IPv4Address
from threading import local
from typing import Any, NamedTuple

from kproxy_ebpf.lab.control_plane import ApiError, ControlPlane, object_path


class Port(NamedTuple):
    """Of a Service and of its servers."""

    service: int
    server: int
    protocol: str = "TCP"


HTTP = {"http": Port(80, 8080)}
FIRST_VIP = IPv4Address("10.96.1.0")
FIRST_ENDPOINT = IPv4Address("10.128.0.1")  # nobody lives there
# kube-apiserver's allocator of today counts every IPAddress twice for each Service made: 15,000 took 284 s and a
# processor, ever more for each. The one before it (a bitmap) is there in the emulation of 1.33: 50,000 in four minutes.
MANY_SERVICES = ("--emulated-version=1.33", "--feature-gates=MultiCIDRServiceAllocator=false,WatchList=true")
CONNECTIONS = 8
CHUNK = 50
SLICE_MAX = 100  # endpoints, the controller's own limit

Object = dict[str, Any]


def vip(number: int) -> str:
    """The ClusterIP of the Service with this number, up to 57,343."""
    return str(FIRST_VIP + number)


def service(name: str, address: str, ports: Mapping[str, Port] = HTTP) -> Object:
    told = [
        {"name": key, "port": port.service, "protocol": port.protocol, "targetPort": port.server}
        for key, port in ports.items()
    ]
    return {"metadata": {"name": name}, "spec": {"clusterIP": address, "ports": told}}


def endpoint(address: str, *, ready: bool = True) -> Object:
    """As the endpoint slice controller writes it: some 280 octets."""
    number = int(IPv4Address(address))
    return {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": True, "terminating": False},
        "nodeName": f"worker-{number % 100}",
        "targetRef": {"kind": "Pod", "namespace": "default", "name": f"pod-{number}", "uid": f"{number:032x}"},
        "zone": f"zone-{number % 3}",
    }


def endpoint_slice(
    service_name: str,
    addresses: Sequence[str],
    ports: Mapping[str, Port] = HTTP,
    *,
    number: int = 1,
    ready: bool = True,
) -> Object:
    return {
        "metadata": {"name": f"{service_name}-{number}", "labels": {"kubernetes.io/service-name": service_name}},
        "addressType": "IPv4",
        "ports": [{"name": key, "port": port.server, "protocol": port.protocol} for key, port in ports.items()],
        "endpoints": [endpoint(address, ready=ready) for address in addresses],
    }


def add_service(
    cluster: ControlPlane, name: str, address: str, endpoints: Sequence[str], ports: Mapping[str, Port] = HTTP
) -> None:
    """One Service with as many slices as the endpoint slice controller would make. Raises ApiError, OSError."""
    cluster.api("POST", object_path("Service"), service(name, address, ports))
    for number, first in enumerate(range(0, len(endpoints), SLICE_MAX), start=1):
        members = endpoints[first : first + SLICE_MAX]
        cluster.api("POST", object_path("EndpointSlice"), endpoint_slice(name, members, ports, number=number))


def name_of(number: int) -> str:
    """Of a Service that `fill` makes."""
    return f"service-{number:05}"


def absent_endpoint(number: int) -> str:
    """An address that nobody has."""
    return str(FIRST_ENDPOINT + number)


def fill(cluster: ControlPlane, services: range, endpoints: int) -> None:
    """Add the Services with these numbers, each with a slice of `endpoints`, all of different addresses.

    Raises ApiError, OSError.
    """
    mine = local()

    def add(numbers: range) -> None:
        if not hasattr(mine, "connection"):
            mine.connection = cluster.connect()
        for path, body in _objects(numbers, endpoints):
            _post(mine.connection, path, body, cluster.authorization)

    with ThreadPoolExecutor(CONNECTIONS) as workers:
        list(workers.map(add, [services[first : first + CHUNK] for first in range(0, len(services), CHUNK)]))


def _objects(services: range, endpoints: int) -> Iterator[tuple[str, Object]]:
    for number in services:
        name = name_of(number)
        first = number * endpoints
        yield object_path("Service"), service(name, vip(number))
        yield (
            object_path("EndpointSlice"),
            endpoint_slice(name, [absent_endpoint(first + index) for index in range(endpoints)]),
        )


def _post(connection: HTTPSConnection, path: str, body: Object, headers: dict[str, str]) -> None:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 201:
        raise ApiError(answer.status, text.decode())
