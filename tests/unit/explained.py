"""A Service of three endpoints, and what the daemon explains of it."""

from __future__ import annotations

import json
from typing import Any

from kproxy_ebpf.daemon.explain import Explainer, plain
from kproxy_ebpf.model.services import (
    Endpoint,
    EndpointSlice,
    Node,
    Protocol,
    Service,
    ServiceName,
    ServicePort,
    SlicePort,
    packed,
    source_range,
)
from kproxy_ebpf.model.snapshot import Kind, ObjectRef, Snapshot, Upserted
from kproxy_ebpf.plan.services.claims import Conflict
from kproxy_ebpf.plan.services.explain import explain
from kproxy_ebpf.plan.services.plan import PlanSettings

NODE = Node("here", zone="near")
NAME = ServiceName("shop", "web")
VIP, LB = packed("10.96.0.1"), packed("192.0.2.1")
NEAR, FAR, SICK = packed("10.244.1.3"), packed("10.244.2.3"), packed("10.244.1.4")
SERVICE = Service(
    NAME,
    (VIP,),
    (ServicePort("http", Protocol.TCP, 80),),
    load_balancer_ips=(LB,),
    source_ranges=(source_range("10.0.0.0/8"),),
    affinity_seconds=60,
)
SLICE = EndpointSlice(
    *("shop", "web-1", NAME, 4, (SlicePort("http", Protocol.TCP, 8080),)),
    (
        Endpoint(NEAR, node_name="here", zone_hints=("near",)),
        Endpoint(FAR, zone_hints=("far", "off")),
        Endpoint(SICK, ready=False, serving=False),
    ),
)


def snapshot() -> Snapshot:
    known = Snapshot(node=NODE)
    known.apply(Upserted(ObjectRef(Kind.SERVICE, *NAME), SERVICE))
    known.apply(Upserted(ObjectRef(Kind.ENDPOINT_SLICE, "shop", "web-1"), SLICE))
    return known


def explanation(*conflicts: Conflict) -> dict[str, Any]:
    """As it arrives from the daemon."""
    found: dict[str, Any] = json.loads(json.dumps(plain(explain(NAME, snapshot(), NODE, PlanSettings(), conflicts))))
    return found


class FakeReconciler:
    first_sync_done = True
    settings = PlanSettings()
    conflicts: tuple[Conflict, ...] = ()
    at_random: frozenset[ServiceName] = frozenset({NAME})

    def __init__(self) -> None:
        self.snapshot = snapshot()

    def full_tables_of(self, name: ServiceName) -> list[str]:
        return ["slots_v4"] if name == NAME else []


def explainer(reconciler: Any, *, is_on: bool = True) -> Explainer:
    return Explainer("here", lambda: is_on, lambda: reconciler)
