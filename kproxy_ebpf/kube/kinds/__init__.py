"""One module for each kind of the Kubernetes API: its shape, its path, and how an object of it is read.

`KINDS` is the table that the sources, the recorder and the daemon loop over, `POLICY_KINDS` that of `explain policy`. A
new kind is a member of `model.Kind`, a module here, and a row of one of these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kproxy_ebpf.kube.kinds import endpoint_slice, namespace, network_policy, node, pod, service
from kproxy_ebpf.kube.kinds.common import ApiKind
from kproxy_ebpf.model.snapshot import Kind

Kinds = Mapping[Kind, ApiKind[Any]]

_ROWS: tuple[ApiKind[Any], ...] = (service.SERVICE, endpoint_slice.ENDPOINT_SLICE, node.NODE)
_POLICY_ROWS: tuple[ApiKind[Any], ...] = (network_policy.NETWORK_POLICY, namespace.NAMESPACE, pod.POD)

KINDS: Kinds = {row.kind: row for row in _ROWS}
"""Every kind that the daemon watches."""

POLICY_KINDS: Kinds = {row.kind: row for row in _POLICY_ROWS}
"""What network policies are about. The daemon asks for none of these."""
