"""What planning network policies costs: `python -m bench.policies [--pods N] [--policies N]`, no root, no traffic.

120 of the cluster's pods are on this node. Each namespace has four policies: pods of its own; an ingress
controller by namespace and pod, on a named port; monitoring by a namespace's label; egress to anybody's DNS, its own
pods and the Internet but for private networks. Everything goes from the API server's bytes to the writes of the tables.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from kproxy_ebpf.kube.kinds import POLICY_KINDS
from kproxy_ebpf.kube.kinds.common import Scope
from kproxy_ebpf.kube.stream import Resource
from kproxy_ebpf.model.policy_snapshot import PolicySnapshot
from kproxy_ebpf.model.policy_tables import ANYBODY, GrantKey
from kproxy_ebpf.model.snapshot import Kind, ObjectRef, Upserted
from kproxy_ebpf.plan.policies.planner import PolicyCapacities, PolicyPlanner

Json = dict[str, Any]
NODE, LOCAL_PODS, WORKLOADS = "node-0", 120, 5
KINDS = 4  # of policies in a namespace
ROLES = ("monitoring", "apps")
CHANGES = 200
CHANGES_WARM = 5
MIB = 1 << 20


def namespace(number: int) -> Json:
    roles = {0: "ingress", 1: "monitoring", 2: "system"}
    labels = {"team": f"team-{number % 20}", "kubernetes.io/metadata.name": f"ns-{number}"}
    return {"metadata": {"name": f"ns-{number}", "labels": {**labels, "role": roles.get(number, "apps")}}}


def pod(number: int, namespaces: int, **labels: str) -> Json:
    """Pods of this node are spread over the namespaces."""
    home, own = number % namespaces, {"app": f"app-{number // namespaces % WORKLOADS}", "tier": f"t{number % 3}"}
    ips = [{"ip": f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"}, {"ip": f"fd00::{number:x}"}]
    ports = [{"name": "http", "containerPort": 8080 + number % 2}, {"name": "metrics", "containerPort": 9090}]
    node = NODE if number < LOCAL_PODS else f"node-{1 + number % 80}"
    return {
        "metadata": {
            "name": f"pod-{number}",
            "namespace": f"ns-{home}",
            "uid": f"u{number}",
            "labels": {**own, **labels},
        },
        "spec": {"nodeName": node, "containers": [{"ports": ports}]},
        "status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips},
    }


def role(name: str) -> Json:
    return {"namespaceSelector": {"matchLabels": {"role": name}}}


def policy(number: int, namespaces: int, port: int = 9090) -> Json:
    home, kind = number % namespaces, number // namespaces % KINDS
    specs: list[Json] = [
        {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "app-0"}}}]}]},
        {
            "podSelector": {"matchLabels": {"app": f"app-{number % WORKLOADS}"}},
            "ingress": [
                {
                    "from": [{**role("ingress"), "podSelector": {"matchLabels": {"app": "app-1"}}}],
                    "ports": [{"port": "http"}],
                }
            ],
        },
        {"podSelector": {}, "ingress": [{"from": [role("monitoring")], "ports": [{"port": port}]}]},
        {
            "podSelector": {},
            "policyTypes": ["Egress"],
            "egress": [
                {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]},
                {"to": [{"podSelector": {}}]},
                {
                    "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.168.0.0/16"]}}],
                    "ports": [{"port": 443}],
                },
            ],
        },
    ]
    return {"metadata": {"name": f"policy-{number}", "namespace": f"ns-{home}"}, "spec": specs[kind]}


class Planned:
    """A snapshot and its planner, fed with bytes."""

    def __init__(self, local: str = NODE) -> None:
        self.snapshot = PolicySnapshot()
        self.planner = PolicyPlanner(local, self.snapshot, PolicyCapacities(), time.monotonic)
        self.entries: dict[str, int] = {}
        self._resources: dict[Kind, Resource[Any]] = {
            kind: row.resource(Scope(NODE)) for kind, row in POLICY_KINDS.items()
        }

    def put(self, kind: Kind, content: bytes) -> None:
        resource = self._resources[kind]
        obj = resource.object_adapter.validate_json(content, strict=True)
        metadata = obj["metadata"]
        ref = ObjectRef(kind, metadata.get("namespace") or "", metadata["name"])
        found = resource.convert(obj)
        assert found is not None
        self.snapshot.apply(Upserted(ref, found))

    def settle(self) -> int:
        """Plan and take everything for written. Returns the number of writes."""
        self.planner.plan()
        writes = sum(len(getattr(step, name)) for step in self.planner.steps for name in step.__slots__)
        self.planner.commit()
        return writes


def encoded(obj: Json) -> bytes:
    return json.dumps(obj).encode()


def objects(pods: int, policies: int) -> Iterator[tuple[Kind, bytes]]:
    namespaces = policies // KINDS
    yield from ((Kind.NAMESPACE, encoded(namespace(number))) for number in range(namespaces))
    yield from ((Kind.POD, encoded(pod(number, namespaces))) for number in range(pods))
    yield from ((Kind.NETWORK_POLICY, encoded(policy(number, namespaces))) for number in range(policies))


def resident() -> float:
    """MiB of RSS."""
    gc.collect()
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.split("Rss:")[1].split()[0]) / 1024


def measure_start(pods: int, policies: int) -> tuple[Planned, dict[str, float]]:
    """A whole start, and what each part of it takes."""
    feed = list(objects(pods, policies))
    planned, before = Planned(), resident()
    began = time.process_time()
    for kind, content in feed:
        planned.put(kind, content)
    read = time.process_time()
    writes = planned.settle()
    done = time.process_time()
    return planned, {
        "read, s": read - began,
        "planned, s": done - read,
        "writes": writes,
        "MiB more": resident() - before,
    }


def measure_changes(planned: Planned, changes: Callable[[int], tuple[Kind, bytes]]) -> tuple[float, float, float]:
    """Median and p99 in ms, and the median number of writes."""
    seconds, writes = [], []
    for number in range(CHANGES_WARM + CHANGES):
        kind, content = changes(number)
        began = time.perf_counter()
        planned.put(kind, content)
        count = planned.settle()
        if number >= CHANGES_WARM:
            seconds.append(time.perf_counter() - began)
            writes.append(count)
    return 1000 * median(seconds), 1000 * quantiles(seconds, n=100)[98], median(writes)


def merged_pairs(planned: Planned) -> int:
    """How many grants there would be if what a subject admits for everybody were merged into each class."""
    planner = PolicyPlanner(NODE, planned.snapshot, PolicyCapacities(), time.monotonic)
    planned.snapshot.touched.pods |= planned.snapshot.pods.keys()
    planner.plan()
    grants: dict[GrantKey, int] = {}
    for step in planner.steps:
        grants |= step.grants
        for key in step.removed_grants:
            del grants[key]
    classes = planner.occupancy()["class_numbers"][0] + 1
    everybody = {key.subject for key in grants if key.class_ == ANYBODY}
    return sum(key.subject not in everybody for key in grants) + classes * len(everybody)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=1000)
    arguments = parser.parse_args()
    pods, policies = arguments.pods, arguments.policies
    planned, start = measure_start(pods, policies)
    print(f"{pods} pods, {policies} policies, {LOCAL_PODS} pods here\n\n| start | |\n|---|---|")
    for name, value in start.items():
        print(f"| {name} | {value:.4g} |")
    for table, (used, _) in planned.planner.occupancy().items():
        print(f"| entries: {table} | {used} |")
    print(f"| entries: grants, if everybody were merged into each class | {merged_pairs(planned)} |")
    dice = random.Random(1)  # noqa: S311
    namespaces = policies // KINDS
    kinds: dict[str, Callable[[int], tuple[Kind, bytes]]] = {
        "a pod elsewhere gets another label": lambda n: (
            Kind.POD,
            encoded(pod(dice.randrange(LOCAL_PODS, pods), namespaces, app=f"app-{n % 7}")),
        ),
        "a pod here gets another label": lambda n: (
            Kind.POD,
            encoded(pod(dice.randrange(LOCAL_PODS), namespaces, app=f"app-{n % 7}")),
        ),
        "a policy in force changes its port": lambda n: (
            Kind.NETWORK_POLICY,
            encoded(policy(2 * namespaces + n % LOCAL_PODS, namespaces, 9000 + n)),
        ),
        "a namespace gets another label": lambda n: (
            Kind.NAMESPACE,
            encoded({"metadata": {"name": f"ns-{3 + n % 40}", "labels": {"role": ROLES[n // 40 % 2]}}}),
        ),
    }
    print("\n| change, from the API's bytes to the writes | median, ms | p99, ms | writes |\n|---|---|---|---|")
    for name, changes in kinds.items():
        middle, worst, writes = measure_changes(planned, changes)
        print(f"| {name} | {middle:.3g} | {worst:.3g} | {writes:g} |")


if __name__ == "__main__":
    main()
