"""The shapes of the API's JSON, as far as a proxy reads it (discovery.k8s.io/v1, v1 Service and Node).

TypedDicts, since pydantic fills them straight from the bytes without an object per field; fields that are not named
here are never built. `null` means absent everywhere, as in Go. What the API server would not admit (a port of 70000,
1,001 endpoints) is refused here too, because a folder of manifests has no API server before it.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

MAX_ENDPOINTS = 1000  # per slice; these two are the API server's own limits
MAX_ADDRESSES = 100
MAX_REASON_CHARS = 300

Object_ = TypeVar("Object_")

PortNumber = Annotated[int, Field(ge=1, le=65535)]
PortNumberOrZero = Annotated[int, Field(ge=0, le=65535)]
ProtocolName = Literal["TCP", "UDP", "SCTP"]


class Metadata(TypedDict):
    name: Annotated[str, Field(min_length=1)]
    namespace: NotRequired[str | None]
    uid: NotRequired[str | None]
    resourceVersion: NotRequired[str | None]
    creationTimestamp: NotRequired[str | None]
    deletionTimestamp: NotRequired[str | None]
    labels: NotRequired[dict[str, str] | None]
    annotations: NotRequired[dict[str, str] | None]


class WirePort(TypedDict):
    port: PortNumber
    name: NotRequired[str | None]
    protocol: NotRequired[ProtocolName | None]
    nodePort: NotRequired[PortNumberOrZero | None]


class ClientIPConfig(TypedDict):
    timeoutSeconds: NotRequired[Annotated[int, Field(ge=1, le=86400)] | None]


class AffinityConfig(TypedDict):
    clientIP: NotRequired[ClientIPConfig | None]


class ServiceSpec(TypedDict):
    type: NotRequired[str | None]
    clusterIP: NotRequired[str | None]
    clusterIPs: NotRequired[list[str] | None]
    ports: NotRequired[list[WirePort] | None]
    externalIPs: NotRequired[list[str] | None]
    loadBalancerSourceRanges: NotRequired[list[str] | None]
    sessionAffinity: NotRequired[str | None]
    sessionAffinityConfig: NotRequired[AffinityConfig | None]
    internalTrafficPolicy: NotRequired[str | None]
    externalTrafficPolicy: NotRequired[str | None]
    publishNotReadyAddresses: NotRequired[bool | None]


class Ingress(TypedDict):
    ip: NotRequired[str | None]
    ipMode: NotRequired[str | None]


class LoadBalancerStatus(TypedDict):
    ingress: NotRequired[list[Ingress] | None]


class ServiceStatus(TypedDict):
    loadBalancer: NotRequired[LoadBalancerStatus | None]


class ServiceObject(TypedDict):
    metadata: Metadata
    spec: ServiceSpec
    status: NotRequired[ServiceStatus | None]


class Conditions(TypedDict):
    ready: NotRequired[bool | None]
    serving: NotRequired[bool | None]
    terminating: NotRequired[bool | None]


class Hint(TypedDict):
    name: str


class Hints(TypedDict):
    forZones: NotRequired[list[Hint] | None]
    forNodes: NotRequired[list[Hint] | None]


class WireEndpoint(TypedDict):
    addresses: NotRequired[Annotated[list[str], Field(max_length=MAX_ADDRESSES)] | None]
    conditions: NotRequired[Conditions | None]
    nodeName: NotRequired[str | None]
    hints: NotRequired[Hints | None]


class WireSlicePort(TypedDict):
    name: NotRequired[str | None]
    protocol: NotRequired[ProtocolName | None]
    port: NotRequired[PortNumberOrZero | None]


class SliceObject(TypedDict):
    metadata: Metadata
    addressType: str
    ports: NotRequired[list[WireSlicePort] | None]
    endpoints: NotRequired[Annotated[list[WireEndpoint], Field(max_length=MAX_ENDPOINTS)] | None]


class Taint(TypedDict):
    key: str


class NodeSpec(TypedDict):
    taints: NotRequired[list[Taint] | None]


class NodeAddress(TypedDict):
    type: str
    address: str


class NodeStatus(TypedDict):
    addresses: NotRequired[list[NodeAddress] | None]


class NodeObject(TypedDict):
    metadata: Metadata
    spec: NotRequired[NodeSpec | None]
    status: NotRequired[NodeStatus | None]


class ConfigMapObject(TypedDict):
    metadata: Metadata
    data: NotRequired[dict[str, str] | None]


class WatchEvent(TypedDict, Generic[Object_]):
    """One line of a watch. Lines of type BOOKMARK and ERROR need not fit: kube/stream.py reads those apart."""

    type: str
    object: Object_


Page = TypedDict("Page", {"resourceVersion": NotRequired[str], "continue": NotRequired[str | None]})


class ObjectList(TypedDict, Generic[Object_]):
    metadata: Page
    items: NotRequired[list[Object_] | None]


SERVICE: TypeAdapter[ServiceObject] = TypeAdapter(ServiceObject)
SLICE: TypeAdapter[SliceObject] = TypeAdapter(SliceObject)
NODE: TypeAdapter[NodeObject] = TypeAdapter(NodeObject)
CONFIG_MAP: TypeAdapter[ConfigMapObject] = TypeAdapter(ConfigMapObject)


_MESSAGES = {"dict_type": "should be an object", "list_type": "should be a list"}  # YAML and JSON in the same words


def reason_of(error: ValidationError) -> str:
    """The first thing wrong, in one line: field path, what it should be, and the value given."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = _MESSAGES.get(first["type"]) or first["msg"].removeprefix("Input ").replace("Field", "field")
    return one_line(f"{_path(first['loc'])}: {message}{_given(first['type'], first['input'])}")


def one_line(text: str) -> str:
    """`text` without control characters, of bounded length: it goes to logs, metrics and Events."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_REASON_CHARS])


def _path(location: tuple[int | str, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).lstrip(".") or "the object"


def _given(error_type: str, value: Any) -> str:
    if error_type in ("missing", "too_long", "json_invalid"):
        return ""
    if isinstance(value, dict):
        return ", not an object"
    if isinstance(value, list):
        return ", not a list"
    return f", not {value!r:.60}"
