"""`explain policy` at a real API server: what it reads there is what was written, and without the right it says so."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from naive_policies import World
from policy_cases import address_of, cases, objects_of

from kproxy_ebpf.cli.explain_policy import listed
from kproxy_ebpf.kube.kinds import POLICY_KINDS
from kproxy_ebpf.lab.control_plane import ControlPlane
from kproxy_ebpf.lab.daemon import COMMAND
from kproxy_ebpf.model.policies import PodName
from kproxy_ebpf.model.policy_snapshot import PolicySnapshot
from kproxy_ebpf.model.snapshot import Kind

Json = dict[str, Any]
NAMESPACES = ("x", "y", "z")
CASE = next(case for case in cases() if case["name"] == "documentation: the example policy")


def create(control: ControlPlane, obj: Json) -> None:
    """As its writer would, and a Pod's status as a kubelet would."""
    kind, metadata = Kind(obj["kind"]), obj["metadata"]
    path = POLICY_KINDS[kind].path
    if "namespace" in metadata:
        group, _, plural = path.rpartition("/")
        path = f"{group}/namespaces/{metadata['namespace']}/{plural}"
    given = {key: value for key, value in metadata.items() if key != "creationTimestamp"}
    body: Json = {"metadata": given}
    if kind is Kind.POD:
        ports = obj["spec"]["containers"][0]["ports"]
        container = {"name": "server", "image": "none", "ports": ports}
        body["spec"] = {"nodeName": obj["spec"]["nodeName"], "containers": [container]}
    elif kind is Kind.NETWORK_POLICY:
        body["spec"] = obj["spec"]
    control.api("POST", path, body)
    if kind is Kind.POD:
        control.api("PATCH", f"{path}/{metadata['name']}/status", {"status": status_of(obj)})


def status_of(pod: Json) -> Json:
    return {**pod["status"], "podIP": pod["status"]["podIPs"][0]["ip"]}


@pytest.fixture
def objects(control: ControlPlane) -> Any:
    written = objects_of(CASE)
    for obj in written:
        create(control, obj)
    yield written
    for obj in written:
        if obj["kind"] == "Pod":  # no kubelet ends it
            path = f"/api/v1/namespaces/{obj['metadata']['namespace']}/pods/{obj['metadata']['name']}"
            control.api("DELETE", path, {"gracePeriodSeconds": 0})
    for name in NAMESPACES:
        control.api("DELETE", f"/api/v1/namespaces/{name}")


def test_what_is_read_is_what_was_written(control: ControlPlane, objects: list[Json]) -> None:
    """Also what the API server adds by default is read as the naive model reads it absent."""
    snapshot = PolicySnapshot()
    with control.place.inside():
        snapshot.apply_all(asyncio.run(listed(control.kubeconfig())))
    assert (snapshot.refused, snapshot.synced) == ({}, POLICY_KINDS.keys())
    ours = {key: pod for key, pod in snapshot.pods.items() if key.namespace in NAMESPACES}
    assert len(ours) == 9
    assert dict(ours[PodName("x", "a")].labels) == {"role": "db"}
    assert [str(policy.key) for policy in snapshot.policies_of(ours[PodName("x", "a")])] == ["x/p"]

    world = World(objects)
    peers = [f"{namespace}/{name}" for namespace in NAMESPACES for name in "abc"]
    for peer in [each for each in peers if each != "x/a"]:
        words = ["explain", "policy", "x/a", "--peer", peer, "--port", "80/tcp", "-o", "json"]
        told = control.place.run([COMMAND, *words, "--kubeconfig", control.kubeconfig()]).stdout
        here, there = address_of("x/a", 4), address_of(peer, 4)
        inward, outward = json.loads(told)["peer"]["ways"][:2]
        assert (peer, inward["admitted"]) == (peer, world.may_pass(there, here, "TCP", 80))
        assert (peer, outward["admitted"]) == (peer, world.may_pass(here, there, "TCP", 80))


def test_without_the_right_to_list_it_says_what_is_missing(control: ControlPlane) -> None:
    token = control.kubectl("create", "token", "default", "--namespace=default", "--duration=10m").stdout.strip()
    config = control.kubeconfig("nobody", token=token)
    done = control.place.run([COMMAND, "explain", "policy", "x/a", "--kubeconfig", config], check=False)
    assert done.returncode == 66
    assert "networkpolicies can't be read: the API server answered 403" in done.stderr
