"""`monitor`: the programs' events as lines."""

from __future__ import annotations

import json
import signal
import socket
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import TYPE_CHECKING, Any

import click

from kproxy_ebpf.cli.common import bpffs_option, option, output_option
from kproxy_ebpf.cli.pinned import generation_in_force
from kproxy_ebpf.cli.rows import endpoint_text, protocol_name
from kproxy_ebpf.contract.layouts import EventsLevel

if TYPE_CHECKING:
    from kproxy_ebpf.datapath.generations.generation import Generation
    from kproxy_ebpf.datapath.maps.events import VerdictEvent

NO_LINK = 0  # what a socket asked for, before there is a packet


@click.command()
@bpffs_option
@output_option
@option("--all", "every", is_flag=True, help="Every packet, also those of flows known already and those left alone.")
def monitor(bpffs: Path, output: str, every: bool) -> None:
    """Show what happens to packets, live, until interrupted."""
    import asyncio

    with suppress(asyncio.CancelledError):
        asyncio.run(follow(generation_in_force(bpffs), every=every, as_json=output == "json"))


async def follow(generation: Generation, *, every: bool, as_json: bool) -> None:
    """Print events until SIGTERM or SIGINT, both of which leave the programs silent again. Raises OSError."""
    import asyncio

    from kproxy_ebpf.datapath.maps.events import EventStream

    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - inside a coroutine there is one
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    booted = datetime.now(UTC) - timedelta(microseconds=clock_gettime_ns(CLOCK_MONOTONIC) / 1000)
    links = LinkNames()
    async with EventStream(generation, EventsLevel.ALL if every else EventsLevel.NOTABLE) as events:
        async for event in events:
            row = event_row(event, booted, links.name(event.ifindex))
            click.echo(json.dumps(row) if as_json else event_line(row))


class LinkNames:
    """Names of this network namespace's links; looked up anew for one not seen before."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def name(self, ifindex: int) -> str:
        if ifindex not in self._names:
            self._names = {ifindex: f"#{ifindex}"} | dict(socket.if_nameindex()) | {NO_LINK: "socket"}
        return self._names[ifindex]


def event_row(event: VerdictEvent, booted: datetime, link: str) -> dict[str, Any]:
    """One event with plain values; `booted` is when CLOCK_MONOTONIC was 0."""
    moment = booted + timedelta(microseconds=event.time_ns / 1000)
    return {
        "time": moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "link": link,
        "direction": event.direction.name.lower(),
        "verdict": event.verdict.name.lower(),
        "protocol": protocol_name(event.protocol),
        "source": endpoint_text(event.source, event.source_port),
        "destination": endpoint_text(event.destination, event.destination_port),
        "to_source": endpoint_text(event.to_source, event.to_source_port),
        "to_destination": endpoint_text(event.to_destination, event.to_destination_port),
        "bytes": event.length,
    }


def event_line(row: dict[str, Any]) -> str:
    """12:00:00.000001 vethclient from_pod TCP 10.244.1.2:5 → 10.96.0.1:80 balanced → 10.244.1.3:8080."""
    was, now = (row["source"], row["destination"]), (row["to_source"], row["to_destination"])
    became = "" if was == now else f" → {now[1]}" if was[0] == now[0] else f" as {now[0]} → {now[1]}"
    return (
        f"{row['time'][11:-1]} {row['link']} {row['direction']} {row['protocol']} {was[0]} → {was[1]} "
        f"{row['verdict']}{became} ({row['bytes']} bytes)"
    )
