"""NetworkPolicies (networking.k8s.io/v1).

A policy never turns into "no policy". Each part is read on its own, and what can't be read admits nothing: a port, a
peer, or a rule of which something unknown may narrow what it says. The rest stays in force. Where it can't be told whom
a policy selects, it isolates every pod that it may select, and admits nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Set
from functools import cache
from sys import intern
from typing import Any, NotRequired, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from kproxy_ebpf.kube import wire
from kproxy_ebpf.kube.addresses import V4_MAPPED, PartialRefusal, Refusal, cidr, refused
from kproxy_ebpf.kube.kinds.common import DEFAULT_NAMESPACE, ApiKind, Scope
from kproxy_ebpf.kube.wire import Metadata, PortNumber, ProtocolName
from kproxy_ebpf.model.policies import (
    EVERYTHING,
    Direction,
    IpBlock,
    NetworkPolicy,
    Operator,
    Peer,
    PodPeer,
    PolicyName,
    Port,
    PortName,
    PortRange,
    Prefix,
    Requirement,
    Rule,
    Selector,
    closed_namespace,
)
from kproxy_ebpf.model.services import Protocol
from kproxy_ebpf.model.snapshot import Kind, Unreadable

PEERS = {Direction.INGRESS: ("ingress", "from"), Direction.EGRESS: ("egress", "to")}
"""By direction: where its rules are, and where a rule has its peers."""
PORT_NAME = re.compile(r"(?!-)(?!.*--)(?=.*[a-z])[a-z0-9-]{1,15}(?<!-)")  # upstream's IsValidPortName
WITH_VALUES = frozenset({Operator.IN, Operator.NOT_IN})

T = TypeVar("T")


class PolicyObject(TypedDict):
    metadata: Metadata
    spec: NotRequired[Any]


class WireSpec(TypedDict):
    podSelector: NotRequired[Any]
    policyTypes: NotRequired[Any]
    ingress: NotRequired[Any]
    egress: NotRequired[Any]


class WireSelector(TypedDict):
    matchLabels: NotRequired[dict[str, str] | None]
    matchExpressions: NotRequired[list[Any] | None]


class WireRequirement(TypedDict):
    key: str
    operator: str
    values: NotRequired[list[str] | None]


class WirePeer(TypedDict):
    podSelector: NotRequired[Any]
    namespaceSelector: NotRequired[Any]
    ipBlock: NotRequired[Any]


WireBlock = TypedDict("WireBlock", {"cidr": str, "except": NotRequired[list[str] | None]})


class WirePort(TypedDict):
    protocol: NotRequired[ProtocolName | None]
    port: NotRequired[PortNumber | str | None]
    endPort: NotRequired[PortNumber | None]


class Parts:
    """Reads what can be read, and keeps why the rest can't."""

    def __init__(self) -> None:
        self.unreadable: list[Refusal] = []

    def try_(self, read: Callable[[], T], otherwise: T) -> T:
        """What `read` returns; `otherwise` where it raises Refusal."""
        try:
            return read()
        except Refusal as refusal:
            self.unreadable.append(refusal)
            return otherwise

    def each(self, where: str, values: Any, read: Callable[[str, Any], T]) -> tuple[T, ...]:
        """What `read` makes of the elements of a list, without those that it refuses."""
        if not isinstance(values, list):
            self.unreadable.append(refused(where, values, "should be a list"))
            return ()
        missing: Any = object()
        found = (
            self.try_(lambda at=f"{where}[{i}]", value=value: read(at, value), missing)  # type: ignore[misc]
            for i, value in enumerate(values)
        )
        return tuple(each for each in found if each is not missing)


def policy_of(obj: PolicyObject, _: Scope) -> NetworkPolicy:
    """The NetworkPolicy. Raises PartialRefusal when some of it can't be read."""
    metadata = obj["metadata"]
    key = PolicyName(intern(metadata.get("namespace") or DEFAULT_NAMESPACE), metadata["name"])
    parts = Parts()
    policy = parts.try_(lambda: _policy(key, obj.get("spec") or {}, parts), closed_namespace(key))
    if parts.unreadable:
        more = f" (and {len(parts.unreadable) - 1} more)" if len(parts.unreadable) > 1 else ""
        raise PartialRefusal(f"{parts.unreadable[0]}{more}", policy)
    return policy


def _policy(key: PolicyName, spec: Any, parts: Parts) -> NetworkPolicy:
    """Raises Refusal where `spec` is no object. A field of it that nobody knows may narrow what all of it says."""
    if not isinstance(spec, dict):
        raise refused("spec", spec, "should be an object")
    known = parts.try_(lambda: _shaped(WireSpec, "spec", spec) is not None, otherwise=False)
    before = len(parts.unreadable)
    selected = _requirements("spec.podSelector", spec.get("podSelector"), parts)
    known = known and len(parts.unreadable) == before
    types, isolated = _types(spec, parts)
    rules = {direction: _rules(direction, spec, parts) for direction in Direction}
    counts = types if known else frozenset()
    return NetworkPolicy(key, selected, {each: rules[each] if each in counts else () for each in isolated})


def _types(spec: Mapping[str, Any], parts: Parts) -> tuple[Set[Direction], Iterable[Direction]]:
    """Whose rules count, and what is isolated. By default Ingress, and Egress where there are egress rules. An entry
    that can't be read may mean either, so it isolates both; but rules of a direction that is not named admit nothing.
    """
    listed = spec.get("policyTypes")
    if listed is None or listed == []:
        types = [Direction.INGRESS, Direction.EGRESS] if spec.get("egress") else [Direction.INGRESS]
        return set(types), types
    before = len(parts.unreadable)
    named = dict.fromkeys(parts.each("spec.policyTypes", listed, _direction))
    return named.keys(), Direction if len(parts.unreadable) > before else named


def _direction(where: str, value: Any) -> Direction:
    if value not in ("Ingress", "Egress"):
        raise refused(where, value, "should be Ingress or Egress")
    return Direction(value)


def _rules(direction: Direction, spec: Mapping[str, Any], parts: Parts) -> tuple[Rule, ...]:
    field, _ = PEERS[direction]
    listed = spec.get(field)
    if listed is None:
        return ()
    return parts.each(f"spec.{field}", listed, lambda where, value: _rule(direction, where, value, parts))


def _rule(direction: Direction, where: str, value: Any, parts: Parts) -> Rule:
    """An empty list is the same as none: everybody, or everything."""
    _, peers_field = PEERS[direction]
    if not isinstance(value, dict):
        raise refused(where, value, "should be an object")
    _no_others(where, value, {peers_field, "ports"})
    peers, ports = value.get(peers_field), value.get("ports")
    return Rule(
        peers=None if peers in (None, []) else parts.each(f"{where}.{peers_field}", peers, _peer),
        ports=None if ports in (None, []) else parts.each(f"{where}.ports", ports, _port),
        place=where.removeprefix("spec."),
    )


def _peer(where: str, value: Any) -> Peer:
    wired = _shaped(WirePeer, where, value)
    block, pods, namespaces = (wired.get(field) for field in ("ipBlock", "podSelector", "namespaceSelector"))
    if block is not None:
        if pods is not None or namespaces is not None:
            raise Refusal(f"{where}: ipBlock stands beside a selector, only one of them may be there")
        return _block(f"{where}.ipBlock", block)
    if pods is None and namespaces is None:
        raise Refusal(f"{where}: neither podSelector nor namespaceSelector nor ipBlock is there")
    return PodPeer(
        namespaces=None if namespaces is None else _selector(f"{where}.namespaceSelector", namespaces),
        pods=_selector(f"{where}.podSelector", pods),
    )


def _block(where: str, value: Any) -> IpBlock:
    """Host bits are ignored, as older servers admitted them. An `except` that takes nothing away is a mistake."""
    wired = _shaped(WireBlock, where, value)
    block = _prefix(f"{where}.cidr", wired["cidr"])
    excepts = []
    for index, text in enumerate(wired.get("except") or ()):
        taken = _prefix(f"{where}.except[{index}]", text)
        if taken.bits <= block.bits or not block.holds(taken.network):
            raise refused(f"{where}.except[{index}]", text, f"is no part of {block}")
        excepts.append(taken)
    return IpBlock(block, tuple(sorted(set(excepts))))


def _prefix(where: str, text: str) -> Prefix:
    found = Prefix(*cidr(where, text))
    if len(found.network) == 16 and found.network.startswith(V4_MAPPED):
        raise refused(where, text, "is an IPv4 range in IPv6 form")
    return found


def _port(where: str, value: Any) -> Port:
    wired = _shaped(WirePort, where, value)
    protocol = Protocol[wired.get("protocol") or "TCP"]
    port, end = wired.get("port"), wired.get("endPort")
    if isinstance(port, int):
        if end is not None and end < port:
            raise refused(f"{where}.endPort", end, f"is less than port {port}")
        return PortRange(protocol, port, end or port)
    if end is not None:
        raise refused(f"{where}.endPort", end, "needs a port that is a number")
    if port is None:
        return PortRange(protocol, 0, 65535)
    if not PORT_NAME.fullmatch(port):
        raise refused(f"{where}.port", port, "is no name of a port")
    return PortName(protocol, intern(port))


def _selector(where: str, value: Any) -> Selector:
    """Raises Refusal if any of it can't be read."""
    parts = Parts()
    selector = _requirements(where, value, parts)
    for refusal in parts.unreadable:
        raise refusal
    return selector


def _requirements(where: str, value: Any, parts: Parts) -> Selector:
    """A selector of what can be read, in ascending order: it selects what the whole selects, and maybe more."""
    if value is None:
        return EVERYTHING
    known = parts.try_(lambda: _shaped(WireSelector, where, value), None)
    if known is None:
        return EVERYTHING
    pairs = (known.get("matchLabels") or {}).items()
    labels = (Requirement(intern(key), Operator.IN, frozenset({label})) for key, label in pairs)
    expressions = parts.each(f"{where}.matchExpressions", known.get("matchExpressions") or [], _requirement)
    return Selector(tuple(sorted({*labels, *expressions}, key=_order)))


def _requirement(where: str, value: Any) -> Requirement:
    wired = _shaped(WireRequirement, where, value)
    if wired["operator"] not in Operator.__members__.values():
        raise refused(f"{where}.operator", wired["operator"], "is not In, NotIn, Exists or DoesNotExist")
    operator, values = Operator(wired["operator"]), wired.get("values") or []
    if bool(values) != (operator in WITH_VALUES):
        raise Refusal(f"{where}.values: {operator} {'needs some' if operator in WITH_VALUES else 'has none'}")
    return Requirement(intern(wired["key"]), operator, frozenset(values))


def _order(requirement: Requirement) -> tuple[str, str, list[str]]:
    return requirement.key, requirement.operator, sorted(requirement.values)


def _shaped(shape: type[T], where: str, value: Any) -> T:
    """`value` as an object of `shape` without other fields. Raises Refusal, which names the field from `where` on."""
    if not isinstance(value, dict):
        raise refused(where, value, "should be an object")
    _no_others(where, value, shape.__annotations__.keys())
    try:
        return cast(T, _adapter(cast(Any, shape)).validate_python(value, strict=True))
    except ValidationError as error:
        raise Refusal(wire.one_line(f"{where}.{wire.reason_of(error)}")) from None


def _no_others(where: str, value: Mapping[str, Any], known: Set[str]) -> None:
    for field in value:
        if field not in known:
            raise refused(where, field, "is a field that is not known")


@cache
def _adapter(shape: type) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


NETWORK_POLICY = ApiKind(
    kind=Kind.NETWORK_POLICY,
    api_version="networking.k8s.io/v1",
    path="/apis/networking.k8s.io/v1/networkpolicies",
    shape=PolicyObject,
    convert=policy_of,
    unreadable=Unreadable.CLOSED,
)
