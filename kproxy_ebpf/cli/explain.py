"""What the daemon explains of a Service, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

EXPLAIN_COLUMNS = ("frontend", "kind", "endpoint", "node", "used", "why")

Json = Mapping[str, Any]


def explanation_rows(explanation: Json) -> Iterator[dict[str, str]]:
    """A row for each endpoint of each frontend; one for a frontend that leads nowhere, which says why."""
    for frontend in explanation["frontends"]:
        row = {"frontend": frontend_text(frontend), "kind": frontend["kind"]}
        if frontend["held_by"]:
            yield {**row, "why": held_text(frontend)}
            continue
        if frontend["verdict"] != "balance":
            yield {**row, "why": frontend["rule"]}
        for endpoint in frontend["endpoints"]:
            used, why = ("yes", frontend["rule"]) if endpoint["used"] else ("no", endpoint["left_out"])
            yield {**row, "endpoint": endpoint["endpoint"], "node": endpoint["node"], "used": used, "why": why}


def explanation_notes(explanation: Json) -> Iterator[str]:
    """Sentences that belong to no single endpoint."""
    for frontend in explanation["frontends"]:
        name = frontend_text(frontend)
        if frontend["source_ranges"]:
            yield f"{name} admits clients of {', '.join(frontend['source_ranges'])} only; others are dropped"
        if frontend["affinity_seconds"]:
            yield f"{name} keeps a client with one backend until it is idle for {frontend['affinity_seconds']} s"
        if frontend["note"]:
            yield f"{name}: {frontend['note']}"
    yield from explanation["problems"]


def frontend_text(frontend: Json) -> str:
    """10.96.0.1:80/TCP, [fd00::1]:53/UDP; without a port, 10.96.0.1 on other ports."""
    address = frontend["address"]
    if not frontend["port"]:
        return f"{address} on other ports"
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{frontend['port']}/{frontend['protocol']}"


def held_text(frontend: Json) -> str:
    return f"claimed by {frontend['held_by']} too, which is older and has it"
