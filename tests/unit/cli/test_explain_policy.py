"""`explain policy` in words, from a folder of manifests and from the API server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from fake_api import FakeApi
from policy_cases import objects_of

from kproxy_ebpf import cli
from kproxy_ebpf.cli.explain_policy import NOT_ENFORCED, listed, parse_port
from kproxy_ebpf.cli.policy_report import UnknownPodError, pod_report
from kproxy_ebpf.errors import ClusterError, UsageError
from kproxy_ebpf.kube.kinds import POLICY_KINDS
from kproxy_ebpf.model.policy_snapshot import PolicySnapshot
from kproxy_ebpf.model.snapshot import Kind

Json = dict[str, Any]
FROM_B = {
    "podSelector": {"matchLabels": {"pod": "a"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}], "ports": [{"port": 80}]}],
}
CASE: Json = {
    "pods": {
        "y/a": {"hostNetwork": True},
        "y/b": {"phase": "Succeeded"},
        "y/c": {"terminating": True, "address": "z/c"},
    },
    "policies": {"x/web": FROM_B, "x/odd": {"podSelector": {}, "ingress": [{"from": [{"fqdn": "a.b"}]}]}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = [{"apiVersion": POLICY_KINDS[Kind(obj["kind"])].api_version, **obj} for obj in objects_of(CASE)]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(documents))
    return tmp_path


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.commands, ["explain", "policy", *words])


def lines(folder: Path, *words: str) -> list[str]:
    result = invoke(*words, "--manifests", str(folder))
    assert result.exception is None
    return [" ".join(line.split()) for line in result.output.splitlines()]


def report(folder: Path, *words: str) -> Json:
    found: Json = json.loads(invoke(*words, "--manifests", str(folder), "-o", "json").output)
    return found


def test_whom_the_rules_admit_and_that_nobody_enforces_them_here(folder: Path) -> None:
    *told, note = lines(folder, "x/a")
    assert told == [
        "Pod x/a on node here, 10.0.1.1, fd00::1:1",
        NOT_ENFORCED,
        "",
        "DIRECTION POLICY RULE PEER PORTS PODS",
        "Ingress x/odd ingress[0] nobody (see the notes) everything",
        "Ingress x/web ingress[0] pods with pod=b of the policy's namespace 80/TCP x/b",
        "Egress none everybody everything",
        "",
        "Ingress: whatever no rule above admits is refused, for the pod is isolated by x/odd, x/web",
        "Egress: no policy isolates the pod, so everything is admitted",
    ]
    assert note.startswith("note: NetworkPolicy x/odd (all.yaml document 14, line ")
    assert note.endswith("the rest is in force: spec.ingress[0].from[0]: 'fqdn' is a field that is not known")
    assert "enforces no NetworkPolicy yet" in NOT_ENFORCED
    assert report(folder, "x/a")["enforced"] is False


def test_what_passes_between_two_pods(folder: Path) -> None:
    found = lines(folder, "x/a", "--peer", "x/b")
    assert "x/b (10.0.1.2) x/a (10.0.1.1) ingress of x/a 80/TCP x/web ingress[0]" in found
    assert "x/b (10.0.1.2) → x/a (10.0.1.1): admitted on 80/TCP, everything else is refused" in found
    assert "x/a (fd00::1:1) → x/b (fd00::1:2): everything is refused" in found
    assert "x/a (10.0.1.1) x/b (10.0.1.2) ingress of x/b nothing isolated by x/odd, and no rule admits it" in found


def test_a_port(folder: Path) -> None:
    assert "x/b (10.0.1.2) → x/a (10.0.1.1): 80/TCP is admitted" in lines(
        folder, "x/a", "--peer", "x/b", "--port", "80"
    )
    found = lines(folder, "x/a", "--peer", "x/b", "--port", "80/udp")
    assert "x/b (10.0.1.2) → x/a (10.0.1.1): 80/UDP is refused" in found
    asked = "x/b (10.0.1.2) x/a (10.0.1.1) ingress of x/a 80/TCP isolated by x/odd, x/web, and no rule admits it"
    assert asked in found
    ways = report(folder, "x/a", "--peer", "x/b", "--port", "80/tcp")["peer"]["ways"]
    assert [way["admitted"] for way in ways] == [True, False, True, False]


def test_an_address(folder: Path) -> None:
    found = lines(folder, "x/a", "--peer", "10.0.1.2", "--port", "80/tcp")
    assert "x/b (10.0.1.2) → x/a (10.0.1.1): 80/TCP is admitted" in found
    assert "note: 10.0.1.2 is x/b" in found
    found = lines(folder, "x/a", "--peer", "192.0.2.1")
    assert "192.0.2.1 → x/a (10.0.1.1): everything is refused" in found
    assert "note: no pod has 192.0.2.1: only ipBlocks and rules for everybody name it" in found


@pytest.mark.parametrize(
    ("peer", "note", "ways"),
    [
        ("x/a", "a pod reaches itself at its own address whatever the policies say", 0),
        ("10.0.1.1", "a pod reaches itself at its own address whatever the policies say", 0),
        ("y/a", "y/a is in the node's network: to policies it is the node's address, whatever its labels", 4),
        ("y/b", "y/b is over: its address may be another pod's", 0),
        ("y/c", "10.0.3.3 of y/c is z/c's by now", 0),
    ],
)
def test_peers_that_are_special(folder: Path, peer: str, note: str, ways: int) -> None:
    found = report(folder, "x/a", "--peer", peer)["peer"]
    assert note in found["notes"]
    assert len(found["ways"]) == ways


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        ("y/a", "The pod is in the node's network (hostNetwork): policies neither isolate it nor select it as a peer"),
        ("y/b", "The pod is over (Succeeded or Failed): policies neither isolate it nor select it as a peer"),
    ],
)
def test_pods_that_do_not_count(folder: Path, pod: str, reason: str) -> None:
    assert lines(folder, pod)[2:3] == [reason]
    assert report(folder, pod)["directions"] == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["web"], "'web' is no Pod: write NAMESPACE/POD"),
        (["x/a", "--port", "80"], "--port needs --peer: name the pod or the address at the other end"),
        (["x/a", "--peer", "x/b", "--port", "x"], "'x' is no port: write PORT/PROTO, as 80/tcp"),
        (["x/a", "--peer", "x/b", "--port", "80/icmp"], "'80/icmp': the protocol is tcp, udp or sctp"),
        (["x/a", "--peer", "here"], "'here' is neither a Pod nor an address: write NAMESPACE/POD or an IP address"),
        (["x/a", "--kubeconfig", "f"], "--manifests and --kubeconfig exclude each other: the objects have one source"),
    ],
)
def test_arguments_that_are_wrong(folder: Path, words: list[str], error: str) -> None:
    result = invoke(*words, "--manifests", str(folder))
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == error


def test_a_pod_that_is_not_there(folder: Path) -> None:
    for words in (["x/none"], ["x/a", "--peer", "x/none"]):
        error = invoke(*words, "--manifests", str(folder)).exception
        assert isinstance(error, UnknownPodError)
        assert str(error) == "there is no Pod x/none among the 9 that were read"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert isinstance(invoke("x/a", "--manifests", str(tmp_path / "none")).exception, ClusterError)


@pytest.mark.parametrize("text", ["0", "65536", "999999999999", "-1", "٣", "/tcp"])
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_port(text)


async def test_the_api_server_is_another_source(tmp_path: Path) -> None:
    api = await FakeApi().start()
    try:
        for obj in objects_of(CASE):
            api.put(POLICY_KINDS[Kind(obj["kind"])].path, obj)
        snapshot = PolicySnapshot()
        snapshot.apply_all(await listed(api.kubeconfig(tmp_path)))
    finally:
        await api.stop()
    assert [each["isolated_by"] for each in pod_report(("x", "a"), snapshot)["directions"]] == [["x/odd", "x/web"], []]
    assert snapshot.synced == POLICY_KINDS.keys()
