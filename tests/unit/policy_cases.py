"""The named cases of tests/unit/plan/policies/cases: a cluster of nine pods, policies, and who reaches whom."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from policy_program import NODE

Json = dict[str, Any]
FOLDER = Path(__file__).parent / "plan/policies/cases"
NAMESPACES, PODS = "xyz", "abc"
STRANGERS = {4: {"out/near": "192.0.2.1", "out/far": "192.0.3.1"}}
STRANGERS[6] = {"out/near": "2001:db8:0:1::1", "out/far": "2001:db8:0:3::1"}
FAMILIES = (4, 6)


def cases() -> list[Json]:
    return [case for file in sorted(FOLDER.glob("*.yaml")) for case in yaml.safe_load(file.read_text())]


def address_of(name: str, family: int) -> str:
    """x/a has 10.0.1.1 and fd00::1:1, z/c has 10.0.3.3 and fd00::3:3."""
    if name in STRANGERS[family]:
        return STRANGERS[family][name]
    namespace, pod = NAMESPACES.index(name[0]) + 1, PODS.index(name[2]) + 1
    return f"10.0.{namespace}.{pod}" if family == 4 else f"fd00::{namespace}:{pod}"


def objects_of(case: Json) -> list[Json]:
    """All objects of the case's cluster."""
    changed = case.get("namespaces") or {}
    labels = {name: changed.get(name, {"ns": name}) for name in NAMESPACES}
    found = [
        {"kind": "Namespace", "metadata": {"name": name, "labels": each}}
        for name, each in labels.items()
        if each is not None
    ]
    found += [_pod(name, (case.get("pods") or {}).get(name, {})) for name in pod_names()]
    for name, spec in (case.get("policies") or {}).items():
        namespace, _, own = name.partition("/")
        found.append({"kind": "NetworkPolicy", "metadata": {"name": own, "namespace": namespace}, "spec": spec})
    return found


def pod_names() -> list[str]:
    return [f"{namespace}/{pod}" for namespace in NAMESPACES for pod in PODS]


def _pod(name: str, changes: Json) -> Json:
    namespace, _, own = name.partition("/")
    metadata: Json = {"name": own, "namespace": namespace, "labels": changes.get("labels", {"pod": own})}
    metadata["creationTimestamp"] = changes.get("created", "2026-01-01T00:00:00Z")
    if changes.get("terminating"):
        metadata["deletionTimestamp"] = "2026-02-01T00:00:00Z"
    spec: Json = {"nodeName": NODE, "containers": [{"ports": changes.get("ports", _ports())}]}
    spec["initContainers"] = [
        {"ports": changes.get("init", [])},
        {"ports": changes.get("sidecar", []), "restartPolicy": "Always"},
    ]
    if changes.get("hostNetwork"):
        spec["hostNetwork"] = True
    ips = [{"ip": address_of(changes.get("address", name), family)} for family in FAMILIES]
    return {
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": {"phase": changes.get("phase", "Running"), "podIPs": ips},
    }


def _ports() -> list[Json]:
    """As upstream's tests name them: serve-80-tcp."""
    return [
        {"name": f"serve-{port}-{protocol.lower()}", "containerPort": port, "protocol": protocol}
        for port in (80, 81)
        for protocol in ("TCP", "UDP", "SCTP")
    ]


def questions(case: Json) -> Iterator[tuple[str, str, int, str, int, bool]]:
    """Client, server, family, protocol, port, and whether the client reaches the server."""
    for ports, lines in (case.get("expect") or case["broken"]).items():
        port, _, protocol = ports.partition("/")
        for family in FAMILIES:
            if case.get("only", family) != family:
                continue
            names = [*_reachable(case), *STRANGERS[family]]
            for client in names:
                for server in names:
                    if client != server and "/" in client and not (_is_out(client) and _is_out(server)):
                        yield client, server, family, protocol, int(port), _expected(lines, client, server)


def _reachable(case: Json) -> list[str]:
    """Pods that are at their own addresses."""
    changes = case.get("pods") or {}
    over = {name for name, each in changes.items() if each.get("phase") in ("Succeeded", "Failed") or "address" in each}
    return [name for name in pod_names() if name not in over]


def _is_out(name: str) -> bool:
    return name.startswith("out/")


def _expected(lines: list[str], client: str, server: str) -> bool:
    answer = True
    for line in lines:
        sign, source, _, destination = line.split()
        if fnmatchcase(client, source) and fnmatchcase(server, destination):
            answer = sign == "+"
    return answer
