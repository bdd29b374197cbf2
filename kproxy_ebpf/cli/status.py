"""`status`: what the maps say, what the daemon wrote last, what it answers now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kproxy_ebpf.cli.common import bpffs_option, output_option, show_json
from kproxy_ebpf.observe.state import read_status

if TYPE_CHECKING:
    from kproxy_ebpf.datapath.generations.generation import Generation


@click.command()
@bpffs_option
@output_option
def status(bpffs: Path, output: str) -> None:
    """Tell how this node is doing: daemon, tables, refused objects."""
    report = node_report(bpffs)
    if output == "json":
        show_json(report)
    else:
        click.echo("\n".join(report_lines(report)))


def node_report(bpffs: Path) -> dict[str, Any]:
    """Everything known of this node, JSON-ready. The Services' names, which may be many, are left out."""
    from kproxy_ebpf.datapath.generations.generation import current

    daemon = read_status(bpffs)
    daemon.pop("services", None)
    generation = current(bpffs)
    return {
        "daemon": daemon or {"running": False},
        "health": ask_health(str(daemon["health_address"])) if daemon.get("running") else None,
        **(_datapath(generation) if generation else {"generation": None, "tables": {}, "verdicts": {}}),
    }


def _datapath(generation: Generation) -> dict[str, Any]:
    from kproxy_ebpf.datapath.maps.counters import Counters, Occupancy

    with closing(Counters(generation)) as counters:
        verdicts = counters.read()
    return {
        "generation": generation.digest,
        "tables": {
            table: {"entries": entries, "max_entries": limit}
            for table, (entries, limit) in Occupancy(generation).read().items()
        },
        "verdicts": {
            verdict.name.lower(): {"packets": packets, "bytes": size} for verdict, (packets, size) in verdicts.items()
        },
    }


def ask_health(address: str) -> dict[str, Any] | None:
    """What /healthz answers on this machine, None where it doesn't."""
    from kproxy_ebpf.cli.daemon_client import ask_daemon

    answer = ask_daemon(address, "/healthz")
    return {"status": answer[0], **answer[1]} if answer else None


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for people."""
    daemon, health = report["daemon"], report["health"]
    if daemon["running"]:
        yield f"daemon      running: {daemon['version']} on {daemon['node']}, process {daemon['pid']}"
    else:
        yield "daemon      not running" + ("; the datapath below stays in force" if report["generation"] else "")
    if daemon["running"]:
        yield f"health      {_health_text(health)}"
    if "settings" in daemon:
        yield "settings    " + " ".join(f"{key}={_setting_text(value)}" for key, value in daemon["settings"].items())
    yield from _place_lines(daemon)
    for sentence in _complaints(daemon, health):
        yield f"problem     {sentence}"
    yield f"generation  {report['generation'] or 'nothing is pinned'}"
    for table, size in report["tables"].items():
        yield f"table       {table:18} {size['entries']:>9} of {size['max_entries']}"
    for verdict, count in report["verdicts"].items():
        if count["packets"]:
            yield f"verdict     {verdict:26} {count['packets']:>12} packets {count['bytes']:>15} bytes"


def _place_lines(daemon: Mapping[str, Any]) -> Iterator[str]:
    """Where the programs are, and how they come there."""
    if daemon.get("links"):
        yield f"links       {', '.join(daemon['links'])}"
    if daemon.get("cni"):
        yield f"cni         {daemon['cni']}"
    yield from _redirect_lines(daemon.get("redirect"))
    if daemon.get("cgroup"):
        yield f"sockets     of {daemon['cgroup']}"


def _redirect_lines(redirect: Mapping[str, Any] | None) -> Iterator[str]:
    if redirect is None:
        return
    served, others = redirect["served"], redirect["others"]
    count = len(set[str]().union(*served.values()))
    families = ", ".join(f"{family} {len(links)}" for family, links in served.items())
    yield f"redirect    serves {count} of {count + len(others)} links ({families})"
    for reason in dict.fromkeys(others.values()):
        yield f"redirect    not {', '.join(name for name, why in others.items() if why == reason)}: {reason}"


def _health_text(health: Mapping[str, Any] | None) -> str:
    if health is None:
        return "no answer"
    return "healthy" if health["status"] == 200 else "unhealthy"


def _setting_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _complaints(daemon: Mapping[str, Any], health: Mapping[str, Any] | None) -> Iterator[str]:
    """/healthz names a few refused objects, the status file all of them: each is told once."""
    told = {**(health or {}).get("errors", {}), **(health or {}).get("problems", {})}
    if daemon.get("refused"):
        told.pop("refused", None)
    yield from told.values()
    for refused in daemon.get("refused", ()):
        yield f"{refused['object']} is refused: {refused['reason']}"
    for conflict in daemon.get("conflicts", ()):
        yield str(conflict)
