"""What `explain policy` tells, as JSON-ready values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from kproxy_ebpf.errors import KproxyError, UsageError
from kproxy_ebpf.kube.addresses import Refusal, packed_ip
from kproxy_ebpf.model.policies import Direction, Pod, PodName, PortRange
from kproxy_ebpf.model.policy_snapshot import PolicySnapshot
from kproxy_ebpf.model.services import Protocol, text_of
from kproxy_ebpf.plan.policies.explain import (
    End,
    ExplainedDirection,
    Verdict,
    both,
    ends_of,
    explain_direction,
    problems,
    verdict,
)
from kproxy_ebpf.plan.policies.population import Population
from kproxy_ebpf.plan.policies.rules import Ranges
from kproxy_ebpf.plan.policies.traits import Traits

Report = dict[str, Any]
ITSELF = "a pod reaches itself at its own address whatever the policies say"


class UnknownPodError(KproxyError):
    """There is no Pod of this name."""

    exit_code = os.EX_NOINPUT


def pod_report(name: tuple[str, str], snapshot: PolicySnapshot) -> Report:
    """The pod, and by direction who isolates it and what the rules admit. Raises UnknownPodError."""
    pod = _pod(PodName(*name), snapshot)
    return {
        "pod": str(pod.key),
        "node": pod.node_name,
        "addresses": [text_of(address) for address in pod.addresses],
        "enforced": False,
        "counts": pod.counts,
        "reason": _reason(pod),
        "directions": [_direction(explain_direction(pod, each, snapshot)) for each in Direction] if pod.counts else [],
        "problems": list(problems(pod, snapshot)),
    }


def peer_report(name: tuple[str, str], peer: str, port: tuple[int, str] | None, snapshot: PolicySnapshot) -> Report:
    """What passes between the pod and `peer`, to it and from it. Raises UnknownPodError, UsageError."""
    pod = _pod(PodName(*name), snapshot)
    population = Population(snapshot, Traits())
    for key in snapshot.pods:
        population.put(key)
    ends, notes = _ends(peer, population, snapshot)
    mine, own_notes = _pod_ends(pod, population)
    if any(end.pod is pod for end in ends):
        return {"peer": peer, "ways": [], "notes": [ITSELF]}
    pairs = [(one, other) for one in mine for other in ends if len(one.address) in (0, len(other.address))]
    ways = [way for one, other in pairs for way in (_way(other, one, port, snapshot), _way(one, other, port, snapshot))]
    if mine and ends and not pairs:
        notes.append(f"{pod.key} and {peer} have no address of one family")
    return {"peer": peer, "ways": ways, "notes": [*notes, *own_notes] if pod.counts else notes}


def _pod(name: PodName, snapshot: PolicySnapshot) -> Pod:
    pod = snapshot.pods.get(name)
    if pod is None:
        raise UnknownPodError(f"there is no Pod {name} among the {len(snapshot.pods)} that were read")
    return pod


def _reason(pod: Pod) -> str:
    if pod.host_network:
        return "The pod is in the node's network (hostNetwork): policies neither isolate it nor select it as a peer"
    if pod.is_over:
        return "The pod is over (Succeeded or Failed): policies neither isolate it nor select it as a peer"
    return ""


def _ends(peer: str, population: Population, snapshot: PolicySnapshot) -> tuple[list[End], list[str]]:
    """The peer at each of its addresses, and what is to be said about it. Raises UnknownPodError, UsageError."""
    if "/" in peer:
        namespace, _, name = peer.partition("/")
        return _pod_ends(_pod(PodName(namespace, name), snapshot), population)
    try:
        address = packed_ip("--peer", peer)
    except Refusal:
        raise UsageError(f"{peer!r} is neither a Pod nor an address: write NAMESPACE/POD or an IP address") from None
    owner = population.owner(address)
    note = f"{peer} is {owner.key}" if owner else f"no pod has {peer}: only ipBlocks and rules for everybody name it"
    return [End(address, owner)], [note]


def _pod_ends(pod: Pod, population: Population) -> tuple[list[End], list[str]]:
    """The pod where it is; an address that is another's by now is left out."""
    if pod.host_network:
        note = f"{pod.key} is in the node's network: to policies it is the node's address, whatever its labels"
        return [End(each, None) for each in pod.addresses], [note]
    if pod.is_over:
        return [], [f"{pod.key} is over: its address may be another pod's"]
    owners = {each: population.owner(each) for each in pod.addresses}
    lost = {each: owner.key for each, owner in owners.items() if owner is not None and owner is not pod}
    notes = [f"{text_of(address)} of {pod.key} is {owner}'s by now" for address, owner in lost.items()]
    return [end for end in ends_of(pod) if end.address not in lost], notes


def _way(source: End, destination: End, port: tuple[int, str] | None, snapshot: PolicySnapshot) -> Report:
    found = []
    if source.pod is not None:
        found.append((source, verdict(source.pod, Direction.EGRESS, destination, snapshot)))
    if destination.pod is not None:
        found.append((destination, verdict(destination.pod, Direction.INGRESS, source, snapshot)))
    ranges: Ranges = None
    for _, each in found:
        ranges = both(ranges, each.ranges)
    return {
        "source": _end_text(source),
        "destination": _end_text(destination),
        "ends": [_end(end, each, port) for end, each in found],
        "admits": ranges_text(ranges),
        "admitted": _holds(ranges, port) if port else None,
        "sentence": _sentence(ranges, port),
    }


def _sentence(ranges: Ranges, port: tuple[int, str] | None) -> str:
    if port:
        return f"{port[0]}/{port[1]} is {'admitted' if _holds(ranges, port) else 'refused'}"
    if ranges is None:
        return "everything is admitted"
    return f"admitted on {ranges_text(ranges)}, everything else is refused" if ranges else "everything is refused"


def _end(end: End, found: Verdict, port: tuple[int, str] | None) -> Report:
    """One end's answer. With `port` only rules that admit it are named."""
    admissions = [each for each in found.admissions if port is None or _holds(each.ranges, port)]
    isolated = ", ".join(map(str, found.isolated_by))
    return {
        "end": f"{found.direction.lower()} of {end.pod.key if end.pod else ''}",
        "isolated_by": [str(each) for each in found.isolated_by],
        "admits": ranges_text(found.ranges),
        "rules": [f"{each.policy} {each.place}" for each in admissions],
        "why": f"isolated by {isolated}, and no rule admits it" if isolated else "no policy isolates it",
    }


def _holds(ranges: Ranges, port: tuple[int, str]) -> bool:
    if ranges is None:
        return True
    number, protocol = port
    return any(each.protocol is Protocol[protocol] and each.first <= number <= each.last for each in ranges)


def ranges_text(ranges: tuple[PortRange, ...] | None) -> str:
    return "everything" if ranges is None else ", ".join(map(str, ranges)) or "nothing"


def _end_text(end: End) -> str:
    address = text_of(end.address) if end.address else ""
    if end.pod is None:
        return address
    return f"{end.pod.key} ({address})" if address else str(end.pod.key)


def _direction(found: ExplainedDirection) -> Report:
    return {
        "direction": found.direction.value,
        "isolated_by": [str(each) for each in found.isolated_by],
        "rules": list(_rules(found)),
    }


def _rules(found: ExplainedDirection) -> Iterator[Report]:
    for rule in found.rules:
        peers = rule.peers
        yield {
            "policy": str(rule.policy),
            "rule": rule.place,
            "peers": None if peers is None else [{"peer": p.text, "pods": [str(key) for key in p.pods]} for p in peers],
            "ports": None if rule.ports is None else list(rule.ports),
        }
