"""Fills the API server with Services and EndpointSlices, over several kept-alive connections at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPSConnection
from ipaddress import IPv4Address
from threading import local
from typing import Any

from kproxy_ebpf.lab.control_plane import ApiError, ControlPlane, object_path

SERVICE_PORT, SERVER_PORT = 80, 8080
FIRST_VIP = IPv4Address("10.96.1.0")
FIRST_ENDPOINT = IPv4Address("10.128.0.1")  # nobody lives there
CONNECTIONS = 8
CHUNK = 50

Object = dict[str, Any]


def vip(number: int) -> str:
    """The ClusterIP of the Service with this number."""
    return str(FIRST_VIP + number)


def service(name: str, address: str) -> Object:
    ports = [{"name": "http", "port": SERVICE_PORT, "protocol": "TCP", "targetPort": SERVER_PORT}]
    return {"metadata": {"name": name}, "spec": {"clusterIP": address, "ports": ports}}


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


def endpoint_slice(service_name: str, addresses: Sequence[str]) -> Object:
    return {
        "metadata": {"name": f"{service_name}-1", "labels": {"kubernetes.io/service-name": service_name}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": SERVER_PORT, "protocol": "TCP"}],
        "endpoints": [endpoint(address) for address in addresses],
    }


def add_service(cluster: ControlPlane, name: str, number: int, addresses: Sequence[str]) -> str:
    """One Service with one slice; its ClusterIP. Raises ApiError, OSError."""
    cluster.api("POST", object_path("Service"), service(name, vip(number)))
    cluster.api("POST", object_path("EndpointSlice"), endpoint_slice(name, addresses))
    return vip(number)


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
        name = f"service-{number:05}"
        first = FIRST_ENDPOINT + number * endpoints
        yield object_path("Service"), service(name, vip(number))
        yield object_path("EndpointSlice"), endpoint_slice(name, [str(first + index) for index in range(endpoints)])


def _post(connection: HTTPSConnection, path: str, body: Object, headers: dict[str, str]) -> None:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 201:
        raise ApiError(answer.status, text.decode())
