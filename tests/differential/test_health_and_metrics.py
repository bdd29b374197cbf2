"""What watches kube-proxy can watch us: the answers of /healthz and /livez, and the metrics that bear its names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any, NamedTuple

import pytest
from cases import HERE
from contenders import OURS, Contenders
from prometheus_client.parser import text_string_to_metric_families

from kproxy_ebpf.lab import Node
from kproxy_ebpf.lab.control_plane import object_path
from kproxy_ebpf.lab.daemon import HEALTH_PORT, METRICS_PORT
from kproxy_ebpf.lab.wait import until

THEIRS = "nftables"
KUBE_PROXY_HEALTH_PORT, KUBE_PROXY_METRICS_PORT = 10256, 10249
PREFIX = "kubeproxy_"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str | None]
    body: str


def get(node: Node, port: int, path: str) -> Answer:
    with node.inside():
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse()
        names = ("Content-Type", "X-Content-Type-Options")
        result = Answer(answer.status, {name: answer.getheader(name) for name in names}, answer.read().decode())
        connection.close()
    return result


def healths(world: Contenders, path: str) -> tuple[Answer, Answer]:
    """Ours and theirs."""
    return get(world.nodes[OURS], HEALTH_PORT, path), get(world.nodes[THEIRS], KUBE_PROXY_HEALTH_PORT, path)


def kinds(body: str) -> dict[str, type]:
    """A body's fields and what they hold; `status` is by family, as kube-proxy is two in one, and we are not."""
    return {name: type(value) for name, value in json.loads(body).items() if name != "status"}


@pytest.fixture
def on_its_way_out(world: Contenders) -> Iterator[None]:
    path, taint = object_path("Node", HERE), {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
    world.control.api("PATCH", path, {"spec": {"taints": [taint]}})
    yield
    world.control.api("PATCH", path, {"spec": {"taints": None}})
    until(lambda: {each.status for each in healths(world, "/healthz")} == {200}, "the node to be eligible again")


@pytest.mark.parametrize("path", ["/healthz", "/livez"])
def test_health_is_told_in_the_same_form(world: Contenders, path: str) -> None:
    ours, theirs = healths(world, path)
    assert (ours.status, ours.headers) == (theirs.status, theirs.headers)
    assert kinds(ours.body).items() >= kinds(theirs.body).items()


@pytest.mark.usefixtures("on_its_way_out")
def test_a_node_on_its_way_out_gets_no_new_traffic_and_no_restart(world: Contenders) -> None:
    until(lambda: {each.status for each in healths(world, "/healthz")} == {503}, "both to have seen it")
    for each in healths(world, "/healthz"):
        assert json.loads(each.body)["nodeEligible"] is False
    assert [each.status for each in healths(world, "/livez")] == [200, 200]


def families(node: Node, port: int) -> dict[str, Any]:
    text = get(node, port, "/metrics").body
    return {each.name: each for each in text_string_to_metric_families(text) if each.name.startswith(PREFIX)}


def test_metrics_of_kube_proxys_names_are_of_its_kinds(world: Contenders) -> None:
    healths(world, "/healthz"), healths(world, "/livez")  # both count what they have answered
    ours, theirs = families(world.nodes[OURS], METRICS_PORT), families(world.nodes[THEIRS], KUBE_PROXY_METRICS_PORT)
    assert ours.keys() <= theirs.keys()
    for name, family in ours.items():
        assert family.type == theirs[name].type, name
        assert buckets(family) == buckets(theirs[name]), name
        # One sync of ours serves both families; what is counted in objects has its own.
        assert labels(family) | {"ip_family"} == labels(theirs[name]) | {"ip_family"}, name


def test_as_many_services_lack_an_endpoint_here(world: Contenders) -> None:
    def lacking(node: Node, port: int) -> dict[str, float]:
        (family,) = (each for name, each in families(node, port).items() if "no_local_endpoints" in name)
        internal = [each for each in family.samples if each.labels["traffic_policy"] == "internal"]
        return {each.labels["ip_family"]: each.value for each in internal}

    ours = lacking(world.nodes[OURS], METRICS_PORT)
    assert ours == lacking(world.nodes[THEIRS], KUBE_PROXY_METRICS_PORT)
    assert set(ours) == {"IPv4", "IPv6"}
    assert all(ours.values())


def buckets(family: Any) -> set[float]:
    return {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}


def labels(family: Any) -> set[str]:
    return {name for sample in family.samples for name in sample.labels if name != "le"}
