"""Which endpoints of a Service port are used from this node, and by which rule.

The rules are upstream kube-proxy's (pkg/proxy/topology.go, endpointslicecache.go): the cluster set and the local set
fall back from ready to serving-and-terminating endpoints independently of each other, and topology hints narrow the
cluster set only when every ready endpoint carries one.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from kproxy_ebpf.contract.layouts import BackendFlags
from kproxy_ebpf.model.services import Endpoint, EndpointSlice, Node, Protocol

Target = tuple[bytes, int]
"""Packed address and port of an endpoint."""

Endpoints = dict[Target, Endpoint]

_READY, _LOCAL = int(BackendFlags.READY), int(BackendFlags.LOCAL)


class Rule(StrEnum):
    """Why a frontend leads to the endpoints it leads to, in words for `explain`."""

    READY = "all ready endpoints"
    SAME_NODE = "ready endpoints whose hints name this node"
    SAME_ZONE = "ready endpoints whose hints name this zone"
    TERMINATING = "none is ready: terminating endpoints that still serve"
    LOCAL_READY = "traffic policy Local: ready endpoints of this node"
    LOCAL_TERMINATING = "traffic policy Local, none ready on this node: its terminating endpoints that still serve"
    LOCAL_NONE = "traffic policy Local, no endpoint on this node: dropped"
    NONE = "no endpoint is ready or still serves: rejected"
    UNDEFINED_PORT = "ports that the Service does not define: rejected"


class Choice(NamedTuple):
    """A set of endpoints in ascending order, so that re-ordered slices give an equal set, and its rule."""

    targets: tuple[Target, ...]
    rule: Rule


def known_endpoints(
    slices: Iterable[EndpointSlice], family: int, port_name: str, protocol: Protocol, node_name: str
) -> Endpoints:
    """Every endpoint behind one Service port, whatever its condition; one entry for each address and port.

    Each slice resolves the port's name on its own. Of an endpoint that is in two slices one that is not terminating
    wins (an address may be used anew while the pod that had it before is still being deleted), then a local one, then
    the one that is more alive.
    """
    found: Endpoints = {}
    for slice_ in slices:
        if slice_.family != family:
            continue
        for port in slice_.ports:
            if port.name != port_name or port.protocol != protocol:
                continue
            number = port.port
            for endpoint in slice_.endpoints:
                target = (endpoint.address, number)
                rival = found.setdefault(target, endpoint)
                if rival is not endpoint and _rank(endpoint, node_name) > _rank(rival, node_name):
                    found[target] = endpoint
    return found


def cluster_set(endpoints: Endpoints, node: Node) -> Choice:
    """The ready endpoints that the topology admits; if none is ready, all that serve while they terminate."""
    ready = {target: endpoint for target, endpoint in endpoints.items() if endpoint.ready}
    if not ready:
        return _choice(_draining(endpoints), Rule.TERMINATING, otherwise=Rule.NONE)
    if all(endpoint.node_hints for endpoint in ready.values()):
        here = [target for target, endpoint in ready.items() if node.name in endpoint.node_hints]
        if here:
            return _choice(here, Rule.SAME_NODE)
    if all(endpoint.zone_hints for endpoint in ready.values()):
        near = [target for target, endpoint in ready.items() if node.zone in endpoint.zone_hints]
        if near:
            return _choice(near, Rule.SAME_ZONE)
    return _choice(ready, Rule.READY)


def local_set(endpoints: Endpoints, node: Node) -> Choice:
    """The ready endpoints of this node; if it has none, those that serve while they terminate.

    Empty with LOCAL_NONE where endpoints exist elsewhere, with NONE where none is usable anywhere.
    """
    local = {target: endpoint for target, endpoint in endpoints.items() if is_local(endpoint, node.name)}
    ready = [target for target, endpoint in local.items() if endpoint.ready]
    if ready:
        return _choice(ready, Rule.LOCAL_READY)
    elsewhere = any(endpoint.ready for endpoint in endpoints.values()) or _draining(endpoints)
    return _choice(_draining(local), Rule.LOCAL_TERMINATING, otherwise=Rule.LOCAL_NONE if elsewhere else Rule.NONE)


def backend_flags(endpoint: Endpoint, node_name: str) -> int:
    """What the tables remember of an endpoint's condition. A terminating endpoint counts as not ready, even where
    publishNotReadyAddresses says ready: when it disappears its pod is gone.
    """
    flags = _LOCAL if is_local(endpoint, node_name) else 0
    return flags | _READY if endpoint.ready and not endpoint.terminating else flags


def is_local(endpoint: Endpoint, node_name: str) -> bool:
    return bool(node_name) and endpoint.node_name == node_name


def _draining(endpoints: Endpoints) -> list[Target]:
    return [target for target, endpoint in endpoints.items() if endpoint.serving and endpoint.terminating]


def _choice(targets: Iterable[Target], rule: Rule, otherwise: Rule = Rule.NONE) -> Choice:
    ordered = tuple(sorted(targets))
    return Choice(ordered, rule if ordered else otherwise)


def _rank(endpoint: Endpoint, node_name: str) -> tuple[bool, bool, bool, bool, tuple[str, ...], tuple[str, ...]]:
    """The hints only break ties, so that the order in which slices arrive has no effect."""
    return (
        not endpoint.terminating,
        is_local(endpoint, node_name),
        endpoint.ready,
        endpoint.serving,
        endpoint.zone_hints,
        endpoint.node_hints,
    )
