"""The tables as rows for people and programs: pure functions from what was read to dicts with plain values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kproxy_ebpf.contract.layouts import BackendFlags, BackendState, FlowFlags, FrontendFlags
from kproxy_ebpf.model.service_tables import TableContents
from kproxy_ebpf.model.services import Protocol, text_of

if TYPE_CHECKING:
    from kproxy_ebpf.model.flows import FlowRecord

SERVICE_COLUMNS = ("service", "vip", "port", "protocol", "backends", "verdict", "affinity")
BACKEND_COLUMNS = ("service", "address", "port", "state", "ready", "local", "id")

FLOW_COLUMNS = ("service", "protocol", "client", "vip", "backend", "state", "idle", "age")

Names = Mapping[str, str]
"""Service id (as text, the status file is JSON) → namespace/name:port of one family."""


def service_rows(family: int, tables: TableContents, names: Names) -> Iterator[dict[str, Any]]:
    """One row per frontend, ordered by address and port; entries that only mark an address as a VIP are left out."""
    for key, frontend in sorted(tables.frontends.items()):
        if frontend.flags & FrontendFlags.VIP_ONLY:
            continue
        yield {
            "service": names.get(str(frontend.service_id), f"#{frontend.service_id}"),
            "family": family,
            "vip": text_of(key.address),
            "port": key.port,
            "protocol": protocol_name(key.protocol),
            "backends": frontend.slot_count,
            "backend_ids": sorted(tables.slots.get(frontend.slot_base, ())),
            "verdict": _verdict(frontend.slot_count, frontend.flags),
            "affinity": f"{frontend.affinity_seconds} s" if frontend.affinity_seconds else "",
            "service_id": frontend.service_id,
        }


def backend_rows(family: int, tables: TableContents, names: Names) -> Iterator[dict[str, Any]]:
    """One row per backend in use, ordered by its Service."""
    used = ((i, b) for i, b in tables.backends.items() if b.state != BackendState.FREE)
    for number, backend in sorted(used, key=lambda item: (item[1].service_id, item[0])):
        yield {
            "service": names.get(str(backend.service_id), f"#{backend.service_id}"),
            "family": family,
            "address": text_of(backend.address),
            "port": backend.port,
            "state": BackendState(backend.state).name.lower(),
            "ready": bool(backend.flags & BackendFlags.READY),
            "local": bool(backend.flags & BackendFlags.LOCAL),
            "id": number,
            "epoch": backend.epoch,
            "service_id": backend.service_id,
        }


def protocol_name(number: int) -> str:
    """TCP, UDP, SCTP, or the number."""
    try:
        return Protocol(number).name
    except ValueError:
        return str(number)


def _verdict(slot_count: int, flags: int) -> str:
    if slot_count:
        return "balance"
    return "drop" if flags & FrontendFlags.DROP else "reject"


def flow_rows(flows: Iterable[FlowRecord], names: Names) -> Iterator[dict[str, Any]]:
    """One row per connection: of its two entries the one for packets from the client."""
    for flow in flows:
        if flow.flags & FlowFlags.REPLY:
            continue
        yield {
            "service": names.get(str(flow.service_id), f"#{flow.service_id}"),
            "family": flow.family,
            "protocol": protocol_name(flow.tuple.protocol),
            "client": endpoint_text(flow.tuple.source, flow.tuple.source_port),
            "vip": endpoint_text(flow.tuple.destination, flow.tuple.destination_port),
            "backend": endpoint_text(flow.to.destination, flow.to.destination_port),
            "source": endpoint_text(flow.to.source, flow.to.source_port),
            "state": flow.state.name.lower(),
            "idle": f"{flow.idle_seconds} s",
            "age": f"{flow.age_seconds} s",
            "idle_seconds": flow.idle_seconds,
            "age_seconds": flow.age_seconds,
            "backend_id": flow.backend_id,
            "epoch": flow.epoch,
            "service_id": flow.service_id,
            "hairpin": bool(flow.flags & FlowFlags.HAIRPIN),
        }


def endpoint_text(address: bytes, port: int) -> str:
    """1.2.3.4:80 or [fd00::1]:80."""
    text = text_of(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
