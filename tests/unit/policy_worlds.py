"""Random clusters as objects of the API: small, so that everything meets everything, and full of corners."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import strategies as st
from naive_policies import World, is_pod
from policy_program import NODE, Node, name_of

from kproxy_ebpf.model.policies import Direction

Json = dict[str, Any]
NAMESPACES = ["x", "y", "z"]
KEYS, VALUES = ["a", "b"], ["1", "2"]
V4 = [f"10.0.{net}.{host}" for net in (0, 1) for host in (1, 2, 3)]
V6 = [f"fd00::{net}:{host}" for net in (0, 1) for host in (1, 2)]
STRANGERS = ["192.0.2.1", "10.0.0.200", "fd00::0:99", "2001:db8::1"]
CIDRS = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/24", "10.0.1.0/24", "10.0.0.1/32", "192.0.2.0/24"]
CIDRS += ["::/0", "fd00::/16", "fd00::/112", "fd00::1:0/112", "fd00::1/128"]
EXCEPTS = {
    "0.0.0.0/0": ["10.0.0.0/8", "10.0.1.0/24", "10.0.0.1/32"],
    "10.0.0.0/8": ["10.0.0.0/24", "10.0.1.0/24", "10.0.0.2/32"],
    "10.0.0.0/16": ["10.0.0.0/24", "10.0.0.0/31"],
    "10.0.0.0/24": ["10.0.0.1/32", "10.0.0.128/25"],
    "::/0": ["fd00::/16", "fd00::1/128"],
    "fd00::/16": ["fd00::1:0/112", "fd00::2/128"],
}
PORTS, PORT_NAMES = [80, 81, 90], ["http", "dns"]
QUESTIONS = [("TCP", 80), ("TCP", 81), ("TCP", 85), ("UDP", 80), ("SCTP", 90), ("ICMP", 0)]


class Dice:
    """Draws objects. From a seed, since hypothesis alone draws mostly empty lists and few meetings."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def world(self) -> list[Json]:
        found = [self.pod(f"pod{number}") for number in range(1, self._random.randint(3, 6))]
        found += [self.namespace(name) for name in NAMESPACES if self._often()]
        found += [self.policy(f"policy{number}") for number in range(1, self._random.randint(2, 5))]
        return found

    def object_(self) -> Json:
        """One object of a few names, so that the same ones change."""
        number = self._random.randint(1, 4)
        return self._one(
            lambda: self.pod(f"pod{number}"),
            lambda: self.pod(f"pod{number}"),
            lambda: self.policy(f"policy{number}"),
            lambda: self.policy(f"policy{number}"),
            lambda: self.namespace(self._random.choice(NAMESPACES)),
        )

    def namespace(self, name: str) -> Json:
        return {"kind": "Namespace", "metadata": {"name": name, "labels": self._labels()}}

    def pod(self, name: str) -> Json:
        """Addresses are drawn from few, so that pods get those of others."""
        metadata: Json = {"name": name, "namespace": self._namespace(), "labels": self._labels()}
        metadata["creationTimestamp"] = self._random.choice(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])
        if self._seldom():
            metadata["deletionTimestamp"] = "2026-02-01T00:00:00Z"
        spec: Json = {
            "nodeName": NODE if self._often() else "there",
            "containers": [{"ports": self._container_ports()}],
        }
        if self._seldom():
            spec["hostNetwork"] = True
        if self._flip():
            sidecar = {"restartPolicy": "Always"} if self._flip() else {}
            spec["initContainers"] = [{"ports": self._container_ports(), **sidecar}]
        phase = self._random.choice(["Succeeded", "Failed", "Pending"]) if self._seldom() else "Running"
        ips = [self._random.choice(V4)] * self._often() + [self._random.choice(V6)] * self._flip()
        status = {"phase": phase, "podIPs": [{"ip": ip} for ip in ips]}
        return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": status}

    def policy(self, name: str) -> Json:
        spec: Json = {"podSelector": self._selector()}
        if self._often():
            spec["policyTypes"] = self._random.choice([["Ingress"], ["Egress"], ["Ingress", "Egress"], []])
        for field, peers in (("ingress", "from"), ("egress", "to")):
            if self._often():
                spec[field] = [self._rule(peers) for _ in range(self._random.randint(0, 3))]
        metadata = {"name": name, "namespace": self._namespace()}
        return {"kind": "NetworkPolicy", "metadata": metadata, "spec": spec}

    def _rule(self, field: str) -> Json:
        rule: Json = {}
        if self._often():
            rule[field] = [self._peer() for _ in range(self._random.choice([0, 1, 1, 2, 3]))]
        if self._often():
            rule["ports"] = [self._port() for _ in range(self._random.choice([0, 1, 1, 2]))]
        return rule

    def _peer(self) -> Json:
        return self._one(
            self._block,
            lambda: {"podSelector": self._selector()},
            lambda: {"namespaceSelector": self._namespace_selector()},
            lambda: {"podSelector": self._selector(), "namespaceSelector": self._namespace_selector()},
        )

    def _block(self) -> Json:
        cidr = self._random.choice(CIDRS)
        excepts = EXCEPTS.get(cidr, [])
        taken = self._random.sample(excepts, self._random.randint(0, min(2, len(excepts))))
        return {"ipBlock": {"cidr": cidr, **({"except": taken} if taken else {})}}

    def _port(self) -> Json:
        port: Json = {"protocol": self._random.choice(["TCP", "UDP", "SCTP"])} if self._flip() else {}
        if self._flip():
            port["port"] = self._random.choice(PORT_NAMES)
        elif self._often():
            port["port"] = self._random.choice(PORTS)
            if self._flip():
                port["endPort"] = self._random.choice([end for end in (80, 85, 90) if end >= port["port"]])
        return port

    def _container_ports(self) -> list[Json]:
        return [
            {
                "name": name,
                "containerPort": self._random.choice(PORTS),
                **({"protocol": self._random.choice(["TCP", "UDP"])} if self._flip() else {}),
            }
            for name in PORT_NAMES
            if self._flip()
        ]

    def _selector(self) -> Json:
        """Every third selects all."""
        if self._random.randrange(3) == 0:
            return {}
        selector: Json = {"matchLabels": self._labels()} if self._flip() else {}
        if self._flip():
            selector["matchExpressions"] = [self._expression() for _ in range(self._random.randint(0, 2))]
        return selector

    def _expression(self) -> Json:
        operator = self._random.choice(["In", "NotIn", "Exists", "DoesNotExist"])
        values = {"values": self._random.sample(VALUES, self._random.randint(1, 2))} if "In" in operator else {}
        return {"key": self._random.choice(KEYS), "operator": operator, **values}

    def _namespace_selector(self) -> Json:
        if self._flip():
            return self._selector()
        return {"matchLabels": {"kubernetes.io/metadata.name": self._namespace()}}

    def _namespace(self) -> str:
        return "x" if self._flip() else self._random.choice(NAMESPACES)

    def _labels(self) -> Json:
        return {key: self._random.choice(VALUES) for key in KEYS if self._flip()}

    def _one(self, *draws: Callable[[], Json]) -> Json:
        return self._random.choice(draws)()

    def _flip(self) -> bool:
        return self._random.randrange(2) == 0

    def _often(self) -> bool:
        return self._random.randrange(5) > 0

    def _seldom(self) -> bool:
        return self._random.randrange(8) == 0


dice = st.integers(0, 2**32 - 1).map(Dice)


def answers(node: Node, pods_: list[Json]) -> dict[tuple[Any, ...], bool]:
    """What the tables say to every question about every local pod that counts."""
    return {
        (name_of(pod), direction, address, *question): node.program.admits(name_of(pod), direction, address, *question)
        for pod in local_pods(pods_)
        for direction in Direction
        for address in [*V4, *V6, *STRANGERS]
        for question in QUESTIONS
    }


def naive_answers(world: World) -> dict[tuple[Any, ...], bool]:
    """The same by the naive model."""
    return {
        (name_of(pod), direction, address, *question): (
            world.may_enter if direction is Direction.INGRESS else world.may_leave
        )(pod, address, *question)
        for pod in local_pods(world.pods)
        for direction in Direction
        for address in [*V4, *V6, *STRANGERS]
        for question in QUESTIONS
    }


def local_pods(pods_: list[Json]) -> list[Json]:
    return [pod for pod in pods_ if is_pod(pod) and pod["spec"].get("nodeName") == NODE]
