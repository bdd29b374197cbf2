"""EndpointSlices (discovery.k8s.io/v1)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from socket import inet_pton
from sys import intern
from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from kproxy_ebpf.kube.addresses import PartialRefusal, Refusal, is_special, packed_ip, refused, without_zeros
from kproxy_ebpf.kube.kinds.common import FAMILIES, ApiKind, Scope, no_duplicates, service_name
from kproxy_ebpf.kube.wire import Metadata, PortNumberOrZero, ProtocolName
from kproxy_ebpf.model.services import Endpoint, EndpointSlice, Protocol, SlicePort
from kproxy_ebpf.model.snapshot import Kind, Unreadable

LABEL_HEADLESS = "service.kubernetes.io/headless"
LABEL_SERVICE = "kubernetes.io/service-name"
ANNOTATION_TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
MAX_ENDPOINTS = 1000  # per slice; these two are the API server's own limits
MAX_ADDRESSES = 100

_SPECIAL_FIRST_BYTES = {4: frozenset({0, 127, 169, 224}), 6: frozenset({0, 0xFE, 0xFF})}


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


def slice_of(obj: SliceObject, _: Scope) -> EndpointSlice | None:
    """The EndpointSlice, None for one that a proxy skips. An addressType other than IPv4 and IPv6 (FQDN, or one not
    invented yet) is skipped, as upstream does. Raises Refusal, or PartialRefusal when only endpoints can't be read.
    """
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    service = labels.get(LABEL_SERVICE)
    if not service or LABEL_HEADLESS in labels or obj["addressType"] not in FAMILIES:
        return None
    name = service_name(metadata, service)
    endpoints, unreadable = _endpoints(obj["addressType"], obj.get("endpoints") or ())
    found = EndpointSlice(
        namespace=name.namespace,
        name=metadata["name"],
        service=name,
        family=FAMILIES[obj["addressType"]][0],
        ports=_slice_ports(obj.get("ports") or ()),
        endpoints=endpoints,
        trigger_time=_seconds_since_epoch((metadata.get("annotations") or {}).get(ANNOTATION_TRIGGER_TIME)),
    )
    if unreadable:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        raise PartialRefusal(f"{unreadable[0]}{more}", found)
    return found


def _slice_ports(ports: Sequence[WireSlicePort]) -> tuple[SlicePort, ...]:
    """Names are unique in a slice; a nil or zero port is ignored."""
    no_duplicates("ports", "name", [port.get("name") or "" for port in ports])
    return tuple(
        SlicePort(intern(port.get("name") or ""), Protocol[port.get("protocol") or "TCP"], number)
        for port in ports
        if (number := port.get("port"))
    )


def _endpoints(address_type: str, endpoints: Sequence[WireEndpoint]) -> tuple[tuple[Endpoint, ...], list[Refusal]]:
    """The endpoints, and why others can't be read. The hot loop of a start: 200,000 endpoints pass here, so shared
    values are looked up, not made again.
    """
    family, af = FAMILIES[address_type]
    suspects = _SPECIAL_FIRST_BYTES[family]
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    result, unreadable = [], []
    for index, wired in enumerate(endpoints):
        addresses = wired.get("addresses")
        if not addresses:
            continue
        try:
            address = inet_pton(af, addresses[0])
        except (OSError, ValueError):
            address = b""
        if not address or address[0] in suspects:
            try:
                address = _unusual_address(index, address_type, addresses[0])
            except Refusal as refusal:
                unreadable.append(refusal)
                continue
        conditions = wired.get("conditions") or {}
        hints = wired.get("hints")
        result.append(
            Endpoint(
                address,
                conditions.get("ready") is not False,
                conditions.get("serving") is not False,
                conditions.get("terminating") is True,
                intern(wired.get("nodeName") or ""),
                _hint_names(shared, hints.get("forZones")) if hints else (),
                _hint_names(shared, hints.get("forNodes")) if hints else (),
            )
        )
    return tuple(result), unreadable


def _unusual_address(index: int, address_type: str, text: str) -> bytes:
    """A packed address, of one that needs a second look. Raises Refusal."""
    where = f"endpoints[{index}].addresses[0]"
    try:
        address = inet_pton(FAMILIES[address_type][1], without_zeros(text))
    except (OSError, ValueError):
        raise refused(where, text, f"is not an {address_type} address") from None
    if is_special(address):
        raise refused(where, text, "is unspecified, loopback or link-local")
    return packed_ip(where, without_zeros(text))


def _hint_names(shared: dict[tuple[str, ...], tuple[str, ...]], hints: list[Hint] | None) -> tuple[str, ...]:
    names = tuple(intern(hint["name"]) for hint in hints or ())
    return shared.setdefault(names, names)


def _seconds_since_epoch(text: str | None) -> float:
    """0.0 for no or an unreadable time: the annotation feeds a metric only."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0.0
    except ValueError:
        return 0.0


ENDPOINT_SLICE = ApiKind(
    kind=Kind.ENDPOINT_SLICE,
    api_version="discovery.k8s.io/v1",
    path="/apis/discovery.k8s.io/v1/endpointslices",
    shape=SliceObject,
    convert=slice_of,
    unreadable=Unreadable.ABSENT,
    label_selector=lambda _: f"!{LABEL_HEADLESS}",
)
