"""The rules of networking.k8s.io/v1 once more, as plainly as they can be said: objects of the API as they are written,
one question at a time. It shares no code with what it judges.

Written from the API's own comments (NetworkPolicySpec and below) and the documentation's page "Network Policies".
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Any

Json = dict[str, Any]
NAME_LABEL = "kubernetes.io/metadata.name"


class World:
    """A cluster as its objects say."""

    def __init__(self, objects: Iterable[Json]) -> None:
        by_kind: dict[str, list[Json]] = {"Pod": [], "Namespace": [], "NetworkPolicy": []}
        for obj in objects:
            by_kind[obj["kind"]].append(obj)
        self.pods = by_kind["Pod"]
        self.policies = by_kind["NetworkPolicy"]
        self.namespaces = {
            obj["metadata"]["name"]: {**labels_of(obj), NAME_LABEL: obj["metadata"]["name"]}
            for obj in by_kind["Namespace"]
        }

    def pod_at(self, address: str) -> Json | None:
        """The pod that has this address: of several the newest that is not on its way out."""
        having = [pod for pod in self.pods if is_pod(pod) and address in addresses_of(pod)]
        having.sort(key=lambda pod: (not terminates(pod), created(pod), namespace_of(pod), pod["metadata"]["name"]))
        return having[-1] if having else None

    def may_pass(self, source: str, destination: str, protocol: str, port: int) -> bool:
        """May a pod or a stranger at `source` open a connection to `destination`? Both ends have to agree."""
        sender, receiver = self.pod_at(source), self.pod_at(destination)
        if sender is not None and sender is receiver:
            return True
        return (sender is None or self.may_leave(sender, destination, protocol, port)) and (
            receiver is None or self.may_enter(receiver, source, protocol, port)
        )

    def may_enter(self, pod: Json, source: str, protocol: str, port: int) -> bool:
        isolating = [policy for policy in self.policies_of(pod) if "Ingress" in types_of(policy)]
        return not isolating or any(
            self._has_peer(rule.get("from"), namespace_of(policy), source)
            and has_port(rule.get("ports"), pod, protocol, port)
            for policy in isolating
            for rule in policy["spec"].get("ingress") or ()
        )

    def may_leave(self, pod: Json, destination: str, protocol: str, port: int) -> bool:
        isolating = [policy for policy in self.policies_of(pod) if "Egress" in types_of(policy)]
        return not isolating or any(
            self._has_peer(rule.get("to"), namespace_of(policy), destination)
            and has_port(rule.get("ports"), self.pod_at(destination), protocol, port)
            for policy in isolating
            for rule in policy["spec"].get("egress") or ()
        )

    def policies_of(self, pod: Json) -> list[Json]:
        if not is_pod(pod):
            return []
        return [
            policy
            for policy in self.policies
            if namespace_of(policy) == namespace_of(pod)
            and selects(policy["spec"].get("podSelector") or {}, labels_of(pod))
        ]

    def _has_peer(self, peers: list[Json] | None, own_namespace: str, address: str) -> bool:
        return not peers or any(self._is_peer(peer, own_namespace, address) for peer in peers)

    def _is_peer(self, peer: Json, own_namespace: str, address: str) -> bool:
        if "ipBlock" in peer:
            block = peer["ipBlock"]
            return in_cidr(address, block["cidr"]) and not any(
                in_cidr(address, each) for each in block.get("except", ())
            )
        pod = self.pod_at(address)
        if pod is None:
            return False
        if "namespaceSelector" in peer:
            if not self._is_namespace(peer["namespaceSelector"], namespace_of(pod)):
                return False
        elif namespace_of(pod) != own_namespace:
            return False
        return "podSelector" not in peer or selects(peer["podSelector"], labels_of(pod))

    def _is_namespace(self, selector: Json, name: str) -> bool:
        """Of a Namespace that nobody knows, nothing but its name may be assumed."""
        if name in self.namespaces:
            return selects(selector, self.namespaces[name])
        keys = {*(selector.get("matchLabels") or {}), *(each["key"] for each in selector.get("matchExpressions") or ())}
        return keys <= {NAME_LABEL} and selects(selector, {NAME_LABEL: name})


def is_pod(pod: Json) -> bool:
    """hostNetwork pods are the node; of pods that are over nothing is left."""
    over = pod["status"].get("phase") in ("Succeeded", "Failed")
    return not over and not pod["spec"].get("hostNetwork")


def selects(selector: Json, labels: dict[str, str]) -> bool:
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions") or ():
        key, operator = each["key"], each["operator"]
        if operator == "In" and labels.get(key) not in each["values"]:
            return False
        if operator == "NotIn" and key in labels and labels[key] in each["values"]:
            return False
        if operator == "Exists" and key not in labels:
            return False
        if operator == "DoesNotExist" and key in labels:
            return False
    return True


def types_of(policy: Json) -> list[str]:
    given = policy["spec"].get("policyTypes")
    if given:
        return list(given)
    return ["Ingress", "Egress"] if policy["spec"].get("egress") else ["Ingress"]


def has_port(ports: list[Json] | None, destination: Json | None, protocol: str, port: int) -> bool:
    return not ports or any(is_port(each, destination, protocol, port) for each in ports)


def is_port(wanted: Json, destination: Json | None, protocol: str, port: int) -> bool:
    if protocol != wanted.get("protocol", "TCP"):
        return False
    number = wanted.get("port")
    if number is None:
        return True
    if isinstance(number, str):
        return destination is not None and number_of(destination, number, protocol) == port
    return bool(number <= port <= wanted.get("endPort", number))


def number_of(pod: Json, name: str, protocol: str) -> int | None:
    """What a port's name means on this pod: containers first, then the init containers that are sidecars."""
    containers = list(pod["spec"].get("containers", ()))
    containers += [each for each in pod["spec"].get("initContainers", ()) if each.get("restartPolicy") == "Always"]
    for container in containers:
        for port in container.get("ports", ()):
            if port.get("name") == name and port.get("protocol", "TCP") == protocol:
                return int(port["containerPort"])
    return None


def in_cidr(address: str, cidr: str) -> bool:
    network = ip_network(cidr, strict=False)
    return ip_address(address).version == network.version and ip_address(address) in network


def addresses_of(pod: Json) -> list[str]:
    return [each["ip"] for each in pod["status"].get("podIPs", ())]


def labels_of(obj: Json) -> dict[str, str]:
    return dict(obj["metadata"].get("labels") or {})


def namespace_of(obj: Json) -> str:
    return str(obj["metadata"]["namespace"])


def terminates(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def created(pod: Json) -> str:
    return str(pod["metadata"].get("creationTimestamp", ""))
