"""One module for each kind of the Kubernetes API: its shape, its path, and how an object of it is read.

`KINDS` is the table that the sources, the recorder and the daemon loop over. A new kind is a member of `model.Kind`, a
module here, and a row of this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kproxy_ebpf.kube.kinds import endpoint_slice, node, service
from kproxy_ebpf.kube.kinds.common import ApiKind
from kproxy_ebpf.model.snapshot import Kind

_ROWS: tuple[ApiKind[Any], ...] = (service.SERVICE, endpoint_slice.ENDPOINT_SLICE, node.NODE)

KINDS: Mapping[Kind, ApiKind[Any]] = {row.kind: row for row in _ROWS}
"""Every kind that a source watches."""
