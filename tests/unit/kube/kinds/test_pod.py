"""What is read of a Pod."""

from __future__ import annotations

import pytest
from fake_api import v4, v6

from kproxy_ebpf.kube.addresses import Refusal
from kproxy_ebpf.kube.kinds.pod import POD
from kproxy_ebpf.model.policies import ContainerPort, Pod, PodName
from kproxy_ebpf.model.services import Protocol


def pod(spec=None, status=None, **metadata):
    return {"metadata": {"name": "web-1", "namespace": "shop", **metadata}, "spec": spec, "status": status}


def test_everything_that_policies_need():
    obj = pod(
        {"nodeName": "n1", "containers": [{"ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}]}]},
        {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        labels={"b": "2", "a": "1"},
        uid="u1",
        creationTimestamp="2024-01-01T00:00:00Z",
    )
    assert POD.parse(obj) == Pod(
        PodName("shop", "web-1"),
        (("a", "1"), ("b", "2")),
        (v4("10.0.0.1"), v6("fd00::1")),
        (ContainerPort("http", Protocol.TCP, 80),),
        "n1",
        created="2024-01-01T00:00:00Z",
        uid="u1",
    )


def test_a_pod_of_which_little_is_known():
    assert POD.parse(pod()) == Pod(PodName("shop", "web-1"))
    assert POD.parse(pod({}, {"podIP": "10.0.0.1"})).addresses == (v4("10.0.0.1"),)


@pytest.mark.parametrize(
    ("spec", "status", "metadata", "counts"),
    [
        ({}, {"phase": "Pending"}, {}, True),
        ({}, {"phase": "Unknown"}, {}, True),
        ({}, {"phase": "Succeeded"}, {}, False),
        ({}, {"phase": "Failed"}, {}, False),
        ({"hostNetwork": True}, {"phase": "Running"}, {}, False),
        ({}, {"phase": "Running"}, {"deletionTimestamp": "2024-01-01T00:00:00Z"}, True),
    ],
)
def test_which_pods_count(spec, status, metadata, counts):
    assert POD.parse(pod(spec, status, **metadata)).counts is counts


def test_ports_of_containers_that_last():
    def port(number, **fields):
        return {"ports": [{"name": "http", "containerPort": number, **fields}]}

    spec = {
        "containers": [port(80), port(81), port(53, protocol="UDP")],
        "initContainers": [
            {**port(90, name="plain")},
            {**port(91, name="sidecar"), "restartPolicy": "Always"},
            {**port(92), "restartPolicy": "Always"},
        ],
    }
    assert POD.parse(pod(spec)).ports == (
        ContainerPort("http", Protocol.TCP, 80),
        ContainerPort("http", Protocol.UDP, 53),
        ContainerPort("sidecar", Protocol.TCP, 91),
    )


def test_pods_of_a_workload_share_their_labels():
    one, other = (POD.parse(pod(name=name, labels={"app": "web"})) for name in ("a", "b"))
    assert one.labels is other.labels


def test_an_address_that_is_none():
    with pytest.raises(Refusal, match=r"status.podIPs\[0\].ip: 'x' is not an IP address"):
        POD.parse(pod({}, {"podIPs": [{"ip": "x"}]}))
