"""`explain policy`: what NetworkPolicies say about a pod, from the objects alone. Nothing enforces them here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kproxy_ebpf.cli.common import option, output_option, show, show_json
from kproxy_ebpf.errors import UsageError

if TYPE_CHECKING:
    from kproxy_ebpf.model.policy_snapshot import PolicySnapshot
    from kproxy_ebpf.model.snapshot import Event

RULE_COLUMNS = ("direction", "policy", "rule", "peer", "ports", "pods")
WAY_COLUMNS = ("from", "to", "asked", "admits", "by")
NOT_ENFORCED = (
    "NOT ENFORCED by kproxy-ebpf, which enforces no NetworkPolicy yet: this is what the objects say, for whoever does"
)
LISTED = 3  # pods of a peer

Json = Mapping[str, Any]


@click.command()
@click.argument("pod", metavar="NAMESPACE/POD")
@click.option("--peer", metavar="NAMESPACE/POD|ADDRESS", help="What passes between the pod and this one, both ways.")
@click.option("--port", metavar="PORT/PROTO", help="With --peer: whether this port is admitted, and by what.")
@option("--manifests", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
        help="Take NetworkPolicies, Namespaces and Pods from YAML files instead of the API server.")  # fmt: skip
@option("--kubeconfig", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
        help="How to reach the API server. [default: as a pod does]")  # fmt: skip
@output_option
def policy(
    pod: str, peer: str | None, port: str | None, manifests: Path | None, kubeconfig: Path | None, output: str
) -> None:
    """Tell which NetworkPolicies select a pod, and whom they admit. They are NOT ENFORCED by kproxy-ebpf yet.

    For each rule: which peers it admits on which ports, and which pods these are now. With --peer: what passes between
    the two, by which rule at either end, and what is refused and why. Reads the objects once; the account of the
    kubeconfig has to be allowed to list them. Exit code 66: they can't be read, or there is no such pod.
    """
    from kproxy_ebpf.cli.policy_report import peer_report, pod_report

    if manifests and kubeconfig:
        raise UsageError("--manifests and --kubeconfig exclude each other: the objects have one source")
    if port and not peer:
        raise UsageError("--port needs --peer: name the pod or the address at the other end")
    name, asked = parse_pod(pod), parse_port(port) if port else None
    snapshot = read(manifests, kubeconfig)
    report = pod_report(name, snapshot)
    if peer:
        report["peer"] = peer_report(name, peer, asked, snapshot)
    if output == "json":
        show_json(report)
        return
    click.echo("\n".join(header(report)))
    if report["counts"]:
        click.echo()
        show(list(way_rows(report) if peer else rule_rows(report)), WAY_COLUMNS if peer else RULE_COLUMNS, output)
        for number, line in enumerate(way_lines(report) if peer else direction_lines(report)):
            click.echo(f"{'' if number else chr(10)}{line}")
    for problem in report["problems"]:
        click.echo(f"note: {problem}")


def parse_pod(text: str) -> tuple[str, str]:
    """Namespace and name. Raises UsageError."""
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise UsageError(f"{text!r} is no Pod: write NAMESPACE/POD")
    return namespace, name


def parse_port(text: str) -> tuple[int, str]:
    """Port and protocol; TCP by default. Raises UsageError."""
    number, slash, protocol = text.partition("/")
    protocol = protocol.upper() if slash else "TCP"
    if not (number.isascii() and number.isdigit() and 1 <= int(number[:6]) <= 65535):
        raise UsageError(f"{text!r} is no port: write PORT/PROTO, as 80/tcp")
    if protocol not in ("TCP", "UDP", "SCTP"):
        raise UsageError(f"{text!r}: the protocol is tcp, udp or sctp")
    return int(number), protocol


def read(manifests: Path | None, kubeconfig: Path | None) -> PolicySnapshot:
    """Everything that policies are about, as it is now. Raises ClusterError."""
    import asyncio

    from kproxy_ebpf.kube.kinds import POLICY_KINDS
    from kproxy_ebpf.kube.kinds.common import Scope
    from kproxy_ebpf.model.policy_snapshot import PolicySnapshot

    snapshot = PolicySnapshot()
    if manifests is not None:
        from kproxy_ebpf.kube.manifests import ManifestSource

        asyncio.run(ManifestSource(manifests, Scope(), POLICY_KINDS).read(snapshot.apply_all))
    else:
        snapshot.apply_all(asyncio.run(listed(kubeconfig)))
    return snapshot


async def listed(kubeconfig: Path | None) -> list[Event]:
    """The same from the API server. Raises ClusterError."""
    from kproxy_ebpf.kube.client import Client
    from kproxy_ebpf.kube.kinds import POLICY_KINDS
    from kproxy_ebpf.kube.kinds.common import Scope
    from kproxy_ebpf.kube.listing import list_once

    client = await (Client.from_kubeconfig(kubeconfig) if kubeconfig else Client.in_cluster())
    try:
        return await list_once(client, POLICY_KINDS, Scope())
    finally:
        await client.aclose()


def header(report: Json) -> Iterator[str]:
    place = f" on node {report['node']}" if report["node"] else ""
    addresses = f", {', '.join(report['addresses'])}" if report["addresses"] else ", without an address so far"
    yield f"Pod {report['pod']}{place}{addresses}"
    yield NOT_ENFORCED
    if report["reason"]:
        yield report["reason"]


def rule_rows(report: Json) -> Iterator[dict[str, str]]:
    """A row for each peer of each rule; one for a policy that isolates and admits nobody."""
    for each in report["directions"]:
        row = {"direction": each["direction"]}
        if not each["isolated_by"]:
            yield {**row, "policy": "none", "peer": "everybody", "ports": "everything"}
        for policy_ in each["isolated_by"]:
            rules = [rule for rule in each["rules"] if rule["policy"] == policy_]
            if not rules:
                yield {**row, "policy": policy_, "rule": "none", "peer": "nobody"}
            for rule in rules:
                yield from _peer_rows({**row, "policy": policy_, "rule": rule["rule"]}, rule)


def _peer_rows(row: dict[str, str], rule: Json) -> Iterator[dict[str, str]]:
    ports = "everything" if rule["ports"] is None else "; ".join(rule["ports"]) or "nothing (see the notes)"
    if rule["peers"] is None:
        yield {**row, "peer": "everybody", "ports": ports}
    elif not rule["peers"]:
        yield {**row, "peer": "nobody (see the notes)", "ports": ports}
    for peer in rule["peers"] or ():
        yield {**row, "peer": peer["peer"], "ports": ports, "pods": _shortened(peer["pods"])}


def _shortened(pods: list[str]) -> str:
    more = f" and {len(pods) - LISTED} more" if len(pods) > LISTED else ""
    return ", ".join(pods[:LISTED]) + more if pods else "none now"


def direction_lines(report: Json) -> Iterator[str]:
    """What follows for whoever no rule names."""
    for each in report["directions"]:
        if each["isolated_by"]:
            yield (
                f"{each['direction']}: whatever no rule above admits is refused, for the pod is isolated by"
                f" {', '.join(each['isolated_by'])}"
            )
        else:
            yield f"{each['direction']}: no policy isolates the pod, so everything is admitted"


def way_rows(report: Json) -> Iterator[dict[str, str]]:
    """A row for each end of each way."""
    for way in report["peer"]["ways"]:
        for end in way["ends"]:
            yield {
                "from": way["source"],
                "to": way["destination"],
                "asked": end["end"],
                "admits": end["admits"],
                "by": ", ".join(end["rules"]) or end["why"],
            }


def way_lines(report: Json) -> Iterator[str]:
    yield from (f"{way['source']} → {way['destination']}: {way['sentence']}" for way in report["peer"]["ways"])
    yield from (f"note: {note}" for note in report["peer"]["notes"])
