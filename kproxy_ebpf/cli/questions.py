"""Commands that answer why: `explain` a Service, `trace` a packet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kproxy_ebpf.cli.common import bpffs_option, metrics_address_option, output_option, show, show_json
from kproxy_ebpf.errors import KproxyError, UsageError


@click.command()
@click.argument("service", metavar="NAMESPACE/NAME")
@metrics_address_option
@output_option
def explain(service: str, metrics_address: str, output: str) -> None:
    """Tell which endpoints of a Service are used here, and why.

    For each frontend: which endpoints pods of this node reach, by which rule, and which rule leaves each other one out.
    Asks the running daemon. Exit code 69: it does not answer; 66: it knows no such Service.
    """
    from kproxy_ebpf.cli.daemon_client import ask_explanation
    from kproxy_ebpf.cli.explain import EXPLAIN_COLUMNS, explanation_notes, explanation_rows

    namespace, slash, name = service.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise UsageError(f"{service!r} is no Service: write NAMESPACE/NAME")
    explanation = ask_explanation(metrics_address, namespace, name)
    if output == "json":
        show_json(explanation)
    elif explanation["state"] != "served":
        click.echo("\n".join([explanation["reason"], *explanation["problems"]]))
    else:
        zone = f", zone {explanation['zone']}" if explanation["zone"] else ""
        click.echo(f"{service} as pods of node {explanation['node']}{zone} reach it:\n")
        show(list(explanation_rows(explanation)), EXPLAIN_COLUMNS, output)
        for number, note in enumerate(explanation_notes(explanation)):
            click.echo(f"{'' if number else chr(10)}note: {note}")


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST:PORT/PROTO")
@bpffs_option
@metrics_address_option
@output_option
def trace(source: str, destination: str, bpffs: Path, metrics_address: str, output: str) -> None:
    """Tell where a pod's packet would go, and why.

    Runs the pinned programs on it, whether or not the daemon runs. Nothing is sent, and no flow or affinity stays
    behind; the verdict's counter counts the packet, and a `monitor` shows it on link lo.

    SRC is a pod's address (with :PORT, IPv6 as [ADDRESS]:PORT, a source port that no connection uses). Examples:
    trace 10.244.1.2 10.96.0.1:80/tcp, trace fd00:244:1::2 [fd00:96::1]:53/udp.
    """
    from kproxy_ebpf.cli.tables import generation_in_force, service_names
    from kproxy_ebpf.cli.trace import parse_packet, service_of, trace_lines, trace_report
    from kproxy_ebpf.datapath.trace import Tracer
    from kproxy_ebpf.model.services import family_of

    packet = parse_packet(source, destination)
    family = family_of(packet.source)
    with Tracer(generation_in_force(bpffs), family) as tracer:
        traced = tracer.trace(packet)
    service = service_of(traced, service_names(bpffs)[family])
    report = trace_report(traced, service, _explained(traced, service, metrics_address))
    if output == "json":
        show_json(report)
    else:
        click.echo("\n".join(trace_lines(report)))


def _explained(traced: Any, service: str | None, metrics_address: str) -> Mapping[str, Any] | None:
    """What the daemon says of the frontend; None without a daemon, or where it has no word for it."""
    from kproxy_ebpf.cli.daemon_client import ask_explanation
    from kproxy_ebpf.cli.trace import explained_frontend

    if service is None or service.startswith("#"):
        return None
    namespace, _, name = service.partition(":")[0].partition("/")
    try:
        return explained_frontend(traced, ask_explanation(metrics_address, namespace, name))
    except KproxyError:
        return None


COMMANDS = (explain, trace)
