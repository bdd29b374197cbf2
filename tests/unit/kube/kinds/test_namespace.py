"""What is read of a Namespace."""

from __future__ import annotations

from kproxy_ebpf.kube.kinds.namespace import NAMESPACE
from kproxy_ebpf.model.policies import Namespace


def test_a_namespace_is_its_labels():
    parsed = NAMESPACE.parse({"metadata": {"name": "shop", "labels": {"team": "a"}}})
    assert parsed == Namespace("shop", (("kubernetes.io/metadata.name", "shop"), ("team", "a")))


def test_the_label_of_its_name_can_be_no_other():
    for labels in (None, {}, {"kubernetes.io/metadata.name": "other"}):
        parsed = NAMESPACE.parse({"metadata": {"name": "shop", "labels": labels}})
        assert parsed == Namespace("shop", (("kubernetes.io/metadata.name", "shop"),))
