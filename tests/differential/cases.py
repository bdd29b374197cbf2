"""The rows of Kubernetes' Service rules, as objects to build once and questions to ask from every contender.

Endpoint names are pods of the lab; `node` is what their slice says, so an endpoint is local where the case wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HERE, ELSEWHERE = "worker", "another"
ZONE, OTHER_ZONE = "zone-a", "zone-b"


@dataclass(frozen=True)
class End:
    """One endpoint of a slice."""

    pod: str
    node: str = HERE
    ready: bool | None = True
    serving: bool | None = None
    terminating: bool | None = None
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    two_addresses: bool = False  # the second one is nobody's

    def manifest(self, address: str) -> dict[str, Any]:
        conditions = {"ready": self.ready, "serving": self.serving, "terminating": self.terminating}
        hints: dict[str, Any] = {}
        nobody = "2001:db8:ffff::1" if ":" in address else "203.0.113.1"
        if self.zones:
            hints["forZones"] = [{"name": zone} for zone in self.zones]
        if self.nodes:
            hints["forNodes"] = [{"name": node} for node in self.nodes]
        return {
            "addresses": [address, nobody] if self.two_addresses else [address],
            "nodeName": self.node,
            "conditions": {name: value for name, value in conditions.items() if value is not None},
            **({"hints": hints} if hints else {}),
        }


@dataclass(frozen=True)
class Ask:
    """A question: what does a pod see at this address of the Service? `alike` names the modes of kube-proxy that we
    agree with, where they differ from each other.
    """

    via: str  # cluster, node, another-node, uplink, external, load-balancer, unallocated
    port: int = 80
    source: str = ""  # what the backend sees of us, where kube-proxy masquerades
    alike: tuple[str, ...] = ("nftables", "iptables")


@dataclass(frozen=True)
class Case:
    """One row. `ends` is a list for each slice."""

    name: str
    ends: tuple[tuple[End, ...], ...]
    asks: tuple[Ask, ...] = (Ask("cluster"),)
    spec: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    slice_labels: Mapping[str, str] = field(default_factory=dict)
    ip_mode: str = ""
    target_ports: tuple[int | None, ...] = ()  # by slice; default 8080


ALL = (End("e1"), End("e2"), End("e3", ELSEWHERE), End("e4", ELSEWHERE))
REMOTE = (End("e3", ELSEWHERE), End("e4", ELSEWHERE))
DRAINING = {"ready": False, "serving": True, "terminating": True}
DEAD = {"ready": False, "serving": False, "terminating": True}
KEPT = "client"  # better than kube-proxy, which masquerades: the backend sees the pod


def _zoned(*zones: tuple[str, ...]) -> tuple[End, ...]:
    return tuple(End(end.pod, end.node, zones=zone) for end, zone in zip(ALL, zones, strict=True))


OUTSIDE = (Ask("node", source=KEPT), Ask("external", source=KEPT), Ask("load-balancer", source=KEPT))
SHORT_CIRCUIT = (Ask("node"), Ask("external"), Ask("load-balancer"))
LOCAL_OUTSIDE = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
LOCAL_INSIDE = {"internalTrafficPolicy": "Local"}

CASES = (
    Case("all-ready", (ALL,)),
    Case("several-slices-with-a-duplicate", (ALL[:2], ALL[1:])),
    Case("named-port-differs-by-slice", (ALL[:2], ALL[2:]), target_ports=(8080, 8443)),
    Case("an-address-used-anew", ((End("e1", **DRAINING),), (End("e1", ELSEWHERE), End("e3", ELSEWHERE)))),
    Case("first-address-only", ((End("e1", two_addresses=True),),)),
    Case("port-without-number", (ALL,), target_ports=(None,)),
    Case("unknown-conditions-mean-ready", ((End("e1", ready=None), End("e2", ready=False)),)),
    Case("terminating-is-avoided", ((End("e1"), End("e2", **DRAINING)),)),
    Case("terminating-serves-if-none-is-ready", ((End("e1", **DRAINING), End("e3", ELSEWHERE, **DRAINING)),)),
    Case("not-ready-is-refused", ((End("e1", ready=False), End("e2", **DEAD)),)),
    Case("no-endpoints", (), spec={"type": "LoadBalancer"}, asks=(Ask("cluster"), *SHORT_CIRCUIT)),
    Case("outside-local-no-endpoints", (), spec=LOCAL_OUTSIDE, asks=(Ask("cluster"), *SHORT_CIRCUIT)),
    Case(
        "undefined-port",
        (ALL,),
        spec={"type": "LoadBalancer"},
        asks=(Ask("cluster", port=81, alike=("nftables",)), Ask("external", port=81), Ask("load-balancer", port=81)),
    ),
    Case("internal-local", (ALL,), spec=LOCAL_INSIDE),
    Case("internal-local-none-here", (REMOTE,), spec=LOCAL_INSIDE),
    Case("internal-local-none-at-all", (), spec=LOCAL_INSIDE),
    Case("internal-local-draining", ((End("e1", **DRAINING), *REMOTE),), spec=LOCAL_INSIDE),
    Case("internal-local-draining-elsewhere", ((End("e3", ELSEWHERE, **DRAINING),),), spec=LOCAL_INSIDE),
    Case("internal-local-dead-elsewhere", ((End("e3", ELSEWHERE, **DEAD),),), spec=LOCAL_INSIDE),
    Case(
        "internal-local-outside", (ALL,), spec={**LOCAL_INSIDE, "type": "LoadBalancer"}, asks=(Ask("cluster"), *OUTSIDE)
    ),
    Case("zone-hints", (_zoned((ZONE,), (OTHER_ZONE,), (ZONE, OTHER_ZONE), (OTHER_ZONE,)),)),
    Case("zone-hints-one-missing", (_zoned((ZONE,), (OTHER_ZONE,), (), (OTHER_ZONE,)),)),
    Case("zone-hints-of-unknown-zones", (_zoned(*((("nowhere",),) * 4)),)),
    Case(
        "zone-hints-count-ready-endpoints-only",
        ((End("e1", zones=(ZONE,)), End("e2", zones=(OTHER_ZONE,)), End("e3", ELSEWHERE, **DRAINING)),),
    ),
    Case(
        "node-hints",
        (
            (
                End("e1", nodes=(HERE,), zones=(ZONE,)),
                End("e2", nodes=(ELSEWHERE,), zones=(ZONE,)),
                End("e3", ELSEWHERE, nodes=(ELSEWHERE,), zones=(OTHER_ZONE,)),
            ),
        ),
    ),
    Case(
        "node-hints-elsewhere-zone-hints-here",
        ((End("e1", nodes=(ELSEWHERE,), zones=(ZONE,)), End("e2", nodes=(ELSEWHERE,), zones=(OTHER_ZONE,))),),
    ),
    Case("outside-cluster", (ALL,), spec={"type": "LoadBalancer"}, asks=OUTSIDE),
    Case("outside-local", (ALL,), spec=LOCAL_OUTSIDE, asks=(Ask("cluster"), *SHORT_CIRCUIT)),
    Case("outside-local-none-here", (REMOTE,), spec=LOCAL_OUTSIDE, asks=(Ask("cluster"), *SHORT_CIRCUIT)),
    Case("outside-local-draining", ((End("e1", **DRAINING), *REMOTE),), spec=LOCAL_OUTSIDE, asks=SHORT_CIRCUIT),
    Case("all-local", (ALL,), spec={**LOCAL_INSIDE, **LOCAL_OUTSIDE}, asks=(Ask("cluster"), *SHORT_CIRCUIT)),
    # A node port of another node is for that node's kube-proxy; so is one on our node's further addresses, for which
    # the nftables mode has nothing, as we have.
    Case(
        "node-port",
        (ALL,),
        spec={"type": "NodePort"},
        asks=(
            Ask("cluster"),
            Ask("node", source=KEPT),
            Ask("another-node", alike=("nftables",)),
            Ask("uplink", alike=("nftables",)),
        ),
    ),
    Case(
        "source-ranges-admit",
        (ALL,),
        spec={"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.244.0.0/16", "fd00:244::/32"]},
        asks=(Ask("load-balancer", source=KEPT),),
    ),
    Case(
        "source-ranges-exclude",
        (ALL,),
        spec={"type": "LoadBalancer", "loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8:1::/48"]},
        asks=(Ask("cluster"), Ask("node", source=KEPT), Ask("load-balancer")),
    ),
    Case(
        "source-ranges-with-blanks",
        (ALL,),
        spec={"type": "LoadBalancer", "loadBalancerSourceRanges": [" 10.244.0.0/16 ", "\tfd00:244::/32"]},
        asks=(Ask("load-balancer", source=KEPT),),
    ),
    Case(
        "source-ranges-of-one-family",
        (ALL,),
        spec={"type": "LoadBalancer", "loadBalancerSourceRanges": ["203.0.113.0/24"]},
        asks=(Ask("load-balancer", source=KEPT),),
    ),
    Case(
        "source-range-of-everybody",
        (ALL,),
        spec={"type": "LoadBalancer", "loadBalancerSourceRanges": ["203.0.113.0/24", "0.0.0.0/0", "::/0"]},
        asks=(Ask("load-balancer", source=KEPT),),
    ),
    Case("ip-mode-proxy", (ALL,), spec={"type": "LoadBalancer"}, ip_mode="Proxy", asks=(Ask("load-balancer"),)),
    Case(
        "ip-mode-vip", (ALL,), spec={"type": "LoadBalancer"}, ip_mode="VIP", asks=(Ask("load-balancer", source=KEPT),)
    ),
    # The nftables mode drops what no Service has in the Service CIDR; we leave it to the node, as iptables does.
    Case(
        "another-proxy",
        (ALL,),
        labels={"service.kubernetes.io/service-proxy-name": "another"},
        asks=(Ask("cluster", alike=("iptables",)), Ask("unallocated", alike=("iptables",))),
    ),
    Case("headless-slice", (ALL,), slice_labels={"service.kubernetes.io/headless": ""}),
    Case(
        "publish-not-ready",
        ((End("e1"), End("e2", ready=True, serving=False)),),
        spec={"publishNotReadyAddresses": True},
    ),
    Case("affinity", (ALL,), spec={"sessionAffinity": "ClientIP"}),
)
