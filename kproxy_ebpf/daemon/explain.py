"""Answers GET /explain/NAMESPACE/NAME: what plan/explain.py finds, as JSON with names and texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kproxy_ebpf.contract.layouts import FrontendFlags
from kproxy_ebpf.model.services import Node, Protocol, ServiceName, SourceRange, text_of
from kproxy_ebpf.plan.services.endpoints import Target
from kproxy_ebpf.plan.services.explain import ExplainedEndpoint, ExplainedFrontend, Explanation, LeftOut, State, explain
from kproxy_ebpf.reconcile.services import Reconciler

Answer = tuple[int, dict[str, Any]]
"""HTTP status and JSON body."""

NOT_SYNCED = "the daemon has not read the whole cluster yet: ask again in a moment"
MODE_OFF = "the mode is off: no Service is served here, pods use the node's kube-proxy"


class Explainer:
    """`is_on` returns True if the mode serves Services at all; `reconciler` returns None before there is one."""

    def __init__(self, node_name: str, is_on: Callable[[], bool], reconciler: Callable[[], Reconciler | None]) -> None:
        self._node_name, self._is_on, self._reconciler = node_name, is_on, reconciler

    def answer(self, namespace: str, name: str) -> Answer:
        """200 with the explanation, 404 where no such Service is known, 503 while the cluster is not known."""
        reconciler = self._reconciler()
        if reconciler is None or not reconciler.first_sync_done:
            return 503, {"reason": NOT_SYNCED}
        service, snapshot = ServiceName(namespace, name), reconciler.snapshot
        node = snapshot.node or Node(self._node_name)
        if not self._is_on():
            return 200, plain(Explanation(service, node, State.OFF, MODE_OFF))
        found = explain(service, snapshot, node, reconciler.settings, reconciler.conflicts)
        found = replace(found, problems=(*found.problems, *_no_room(reconciler, service)))
        return 404 if found.state is State.UNKNOWN else 200, plain(found)


def _no_room(reconciler: Reconciler, service: ServiceName) -> list[str]:
    sentences = [
        f"table {table} has no room for it: what it had in the tables before stays"
        for table in reconciler.full_tables_of(service)
    ]
    if service in reconciler.at_random:
        sentences.append("the slots have no room for its Maglev table: it is balanced at random")
    return sentences


def plain(explanation: Explanation) -> dict[str, Any]:
    """An explanation as JSON-ready values. Endpoints and frontends are texts, ranges CIDRs."""
    return {
        "service": str(explanation.service),
        "node": explanation.node.name,
        "zone": explanation.node.zone,
        "state": explanation.state.value,
        "reason": explanation.reason,
        "problems": list(explanation.problems),
        "frontends": [_frontend(frontend) for frontend in explanation.frontends],
    }


def _frontend(frontend: ExplainedFrontend) -> dict[str, Any]:
    plan = frontend.plan
    return {
        "kind": plan.kind.value,
        "family": frontend.family,
        "address": text_of(plan.key.address),
        "port": plan.key.port,
        "protocol": Protocol(plan.key.protocol).name if plan.key.protocol else "",
        "port_name": frontend.port_name,
        "held_by": str(frontend.held_by) if frontend.held_by else None,
        "rule": plan.rule.value,
        "verdict": "balance" if plan.targets else "drop" if plan.flags & FrontendFlags.DROP else "reject",
        "balancing": "maglev" if plan.flags & FrontendFlags.MAGLEV else "random",
        "affinity_seconds": plan.affinity_seconds,
        "source_ranges": [_range(each) for each in frontend.source_ranges],
        "note": frontend.note,
        "endpoints": [_endpoint(each) for each in frontend.endpoints],
    }


def _endpoint(explained: ExplainedEndpoint) -> dict[str, Any]:
    endpoint = explained.endpoint
    return {
        "endpoint": _target(explained.target),
        "used": explained.left_out is None,
        "left_out": _left_out(explained),
        "ready": endpoint.ready,
        "serving": endpoint.serving,
        "terminating": endpoint.terminating,
        "node": endpoint.node_name,
        "zone_hints": list(endpoint.zone_hints),
        "node_hints": list(endpoint.node_hints),
    }


def _left_out(explained: ExplainedEndpoint) -> str | None:
    """The rule in words; of hints also what they name."""
    rule, endpoint = explained.left_out, explained.endpoint
    hints = {LeftOut.NODE_HINTS: endpoint.node_hints, LeftOut.ZONE_HINTS: endpoint.zone_hints}
    if rule is None or rule not in hints:
        return rule.value if rule else None
    return f"{rule.value}: {', '.join(hints[rule])}"


def _target(target: Target) -> str:
    text = text_of(target[0])
    return f"[{text}]:{target[1]}" if ":" in text else f"{text}:{target[1]}"


def _range(source_range: SourceRange) -> str:
    return f"{text_of(source_range.network)}/{source_range.prefix_bits}"
