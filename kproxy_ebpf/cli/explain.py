"""`explain`: which endpoints of a Service are used here, and why, as the daemon tells it. `explain policy` is a command
of its own (explain_policy.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from kproxy_ebpf.cli import explain_policy
from kproxy_ebpf.cli.common import metrics_address_option, output_option, show, show_json
from kproxy_ebpf.errors import UsageError

EXPLAIN_COLUMNS = ("frontend", "kind", "endpoint", "node", "used", "why")

Json = Mapping[str, Any]


class ServiceByDefault(click.Group):
    """`explain NAMESPACE/NAME` is `explain service NAMESPACE/NAME`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["service", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ServiceByDefault, subcommand_metavar="NAMESPACE/NAME | policy NAMESPACE/POD [OPTIONS]")
def explain() -> None:
    """Explain a Service, or the policies of a pod.

    `explain NAMESPACE/NAME` tells which endpoints of a Service are used here and why. `explain policy NAMESPACE/POD`
    tells what NetworkPolicies say about a pod; kproxy-ebpf does not enforce them yet.
    """


@explain.command("service")
@click.argument("service", metavar="NAMESPACE/NAME")
@metrics_address_option
@output_option
def explain_service(service: str, metrics_address: str, output: str) -> None:
    """Tell which endpoints of a Service are used here, and why.

    For each frontend: which endpoints pods of this node reach, by which rule, and which rule leaves each other one out.
    Asks the running daemon. Exit code 69: it does not answer; 66: it knows no such Service.
    """
    from kproxy_ebpf.cli.daemon_client import ask_explanation

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


explain.add_command(explain_policy.policy)


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
