"""What is read of the Node."""

from __future__ import annotations

import pytest
from fake_api import v4, v6

from kproxy_ebpf.kube.kinds.node import NODE
from kproxy_ebpf.model.services import Node


def test_everything_a_proxy_needs():
    addresses = [
        {"type": "Hostname", "address": "n1"},
        {"type": "ExternalIP", "address": "192.0.2.1"},
        {"type": "ExternalIP", "address": "2001:db8::1"},
        {"type": "InternalIP", "address": "10.0.0.1"},
        {"type": "InternalIP", "address": "10.0.0.2"},
    ]
    metadata = {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}}
    parsed = NODE.parse({"metadata": metadata, "spec": {}, "status": {"addresses": addresses}})
    assert parsed == Node("n1", "a", (v4("10.0.0.1"), v6("2001:db8::1")), eligible=True)


@pytest.mark.parametrize(
    ("metadata", "taints", "eligible"),
    [
        ({}, None, True),
        ({}, [{"key": "node.kubernetes.io/not-ready"}], True),
        ({}, [{"key": "ToBeDeletedByClusterAutoscaler"}], False),
        ({"deletionTimestamp": "2024-01-01T00:00:00Z"}, None, False),
    ],
)
def test_a_node_on_its_way_out_is_not_eligible(metadata, taints, eligible):
    assert NODE.parse({"metadata": {"name": "n1", **metadata}, "spec": {"taints": taints}}).eligible is eligible
