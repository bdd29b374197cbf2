"""`trace`: what the datapath would do with a packet, joined with what the daemon says of the Service."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from socket import if_indextoname
from typing import TYPE_CHECKING, Any

import click

from kproxy_ebpf.cli.common import bpffs_option, metrics_address_option, output_option, show_json
from kproxy_ebpf.cli.explain import frontend_text
from kproxy_ebpf.cli.pinned import generation_in_force, service_names
from kproxy_ebpf.cli.rows import Names, endpoint_text, protocol_name
from kproxy_ebpf.contract.layouts import BackendFlags, BackendState, Direction, FrontendFlags, Verdict
from kproxy_ebpf.datapath.frames import Refusal
from kproxy_ebpf.errors import KproxyError, UsageError
from kproxy_ebpf.model.flows import FlowTuple
from kproxy_ebpf.model.service_tables import Backend
from kproxy_ebpf.model.services import Protocol, family_of, text_of

if TYPE_CHECKING:
    from kproxy_ebpf.datapath.trace import Trace

FIRST = {Protocol.TCP: "TCP SYN", Protocol.UDP: "UDP datagram", Protocol.SCTP: "SCTP INIT"}
REFUSED = {
    Refusal.RESET: "the pod gets a TCP RST from the VIP: its connect fails at once with ECONNREFUSED",
    Refusal.UNREACHABLE: "the pod gets an ICMP port unreachable: a connected socket fails at once with ECONNREFUSED",
}
DROPPED = {
    Verdict.DROPPED_TRAFFIC_POLICY: "dropped: endpoints exist, but internalTrafficPolicy Local admits none here",
    Verdict.DROPPED_SOURCE_RANGE: "dropped: the source is outside loadBalancerSourceRanges",
    Verdict.DROPPED_FLOW_TABLE_FULL: "dropped: no flow could be created; the sender tries again",
    Verdict.DROPPED_NO_SOURCE_PORT: "dropped: another connection has this tuple, and no free source port was found",
    Verdict.DROPPED_FRAGMENT: "dropped: the fragment contradicts the first one of its datagram",
    Verdict.DROPPED_WITH_FIRST: "dropped: so was the first fragment of its datagram, or it was refused",
    Verdict.DROPPED_INTERNAL: "dropped: the kernel refused what the program asked for",
}

LISTED = 10
HOW = {"random": "at random", "maglev": "by the connection's hash (Maglev)"}


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
    from kproxy_ebpf.datapath.trace import Tracer

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


def _explained(traced: Trace, service: str | None, metrics_address: str) -> Mapping[str, Any] | None:
    """What the daemon says of the frontend; None without a daemon, or where it has no word for it."""
    from kproxy_ebpf.cli.daemon_client import ask_explanation

    if service is None or service.startswith("#"):
        return None
    namespace, _, name = service.partition(":")[0].partition("/")
    try:
        return explained_frontend(traced, ask_explanation(metrics_address, namespace, name))
    except KproxyError:
        return None


def parse_packet(source: str, destination: str) -> FlowTuple:
    """The packet that SRC and DST:PORT/PROTO ask for; source port 0 where none is given. Raises UsageError."""
    target, _, protocol_text = destination.rpartition("/")
    protocol = Protocol.__members__.get(protocol_text.upper())
    if protocol is None or not target:
        raise UsageError(f"{destination!r} is no destination: write ADDRESS:PORT/tcp, /udp or /sctp")
    to, port = _endpoint(target)
    if not port:
        raise UsageError(f"{destination!r} has no port: write ADDRESS:PORT/PROTO, an IPv6 address in brackets")
    from_, from_port = _endpoint(source)
    if family_of(from_) != family_of(to):
        raise UsageError(f"{source} and {destination} are of two address families: give the pod's other address")
    return FlowTuple(from_, from_port, to, port, int(protocol), Direction.FROM_POD)


def _endpoint(text: str) -> tuple[bytes, int]:
    """ADDRESS, ADDRESS:PORT, [IPV6] or [IPV6]:PORT as packed address and port, 0 without one."""
    match = re.fullmatch(r"\[([^\]]*)\](?::(\d+))?|([^:]*)(?::(\d+))?|(.*)", text)
    address, port = (match[1] or match[3] or match[5], match[2] or match[4] or "0") if match else ("", "0")
    try:
        packed = ip_address(address).packed
    except ValueError:
        raise UsageError(f"{text!r} is no address: write IPV4, IPV4:PORT, IPV6 or [IPV6]:PORT") from None
    if int(port) > 65535:
        raise UsageError(f"{text!r}: a port is at most 65535")
    return packed, int(port)


def service_of(traced: Trace, names: Names) -> str | None:
    """namespace/name:port of the frontend's Service, #ID where nobody wrote down its name."""
    if traced.frontend is None:
        return None
    return names.get(str(traced.frontend.service_id), f"#{traced.frontend.service_id}")


def explained_frontend(traced: Trace, explanation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the daemon says of the frontend that the packet met."""
    packet = traced.packet
    port, protocol = (0, "") if traced.is_vip_only else (packet.destination_port, protocol_name(packet.protocol))
    wanted = (text_of(packet.destination), port, protocol)
    for frontend in explanation["frontends"]:
        if (frontend["address"], frontend["port"], frontend["protocol"]) == wanted:
            return dict(frontend)
    return None


def trace_report(traced: Trace, service: str | None, explained: Mapping[str, Any] | None) -> dict[str, Any]:
    """The trace as JSON-ready values. Without `explained` (no daemon) there is no rule: maps hold sets, not reasons."""
    packet, frontend = traced.packet, traced.frontend
    return {
        "protocol": protocol_name(packet.protocol),
        "source": endpoint_text(packet.source, packet.source_port),
        "destination": endpoint_text(packet.destination, packet.destination_port),
        "frontend": _frontend(traced) if frontend else None,
        "service": service,
        "rule": explained["rule"] if explained else None,
        "explained": dict(explained) if explained else None,
        "choices": [endpoint_text(each.address, each.port) for each in traced.choices],
        "balancing": "maglev" if frontend and frontend.flags & FrontendFlags.MAGLEV else "random",
        "backend": _backend(traced.backend, traced.backend_id) if traced.backend else None,
        "affine": traced.was_affine,
        "verdict": traced.verdict.name.lower(),
        "becomes": _tuple(traced.becomes) if traced.becomes else None,
        "hairpin": traced.hairpin,
        "handed_to": _link(traced.handed_to) if traced.handed_to else None,
        "answer": traced.answer.value if traced.answer else None,
        "why": _why(traced, service),
    }


def _frontend(traced: Trace) -> str:
    packet = traced.packet
    port, protocol = (0, "") if traced.is_vip_only else (packet.destination_port, protocol_name(packet.protocol))
    return frontend_text({"address": text_of(packet.destination), "port": port, "protocol": protocol})


def _backend(backend: Backend, number: int) -> dict[str, Any]:
    return {
        "endpoint": endpoint_text(backend.address, backend.port),
        "state": BackendState(backend.state).name.lower(),
        "local": bool(backend.flags & BackendFlags.LOCAL),
        "id": number,
        "epoch": backend.epoch,
    }


def _tuple(packet: FlowTuple) -> dict[str, str]:
    return {
        "source": endpoint_text(packet.source, packet.source_port),
        "destination": endpoint_text(packet.destination, packet.destination_port),
    }


def _why(traced: Trace, service: str | None) -> str:
    """The verdict in a sentence."""
    match traced.verdict:
        case Verdict.UNTOUCHED if traced.handed_to or traced.leaves:
            return f"no frontend has this address and port: {_handed(traced)} as it is"
        case Verdict.UNTOUCHED if traced.frontend is not None:
            return "in this mode the programs at the pods' links translate no new connection: left to the host as it is"
        case Verdict.UNTOUCHED:
            return "no frontend has this address and port, nor is the address a VIP: left to the host as it is"
        case Verdict.BALANCED if traced.hairpin:
            return "the pod reaches itself: sent back out of its own link, as from the VIP"
        case Verdict.BALANCED if traced.handed_to or traced.leaves:
            return f"translated, then {_handed(traced)}"
        case Verdict.BALANCED:
            return "translated, then left to the host's routes"
        case Verdict.REJECTED_NO_BACKEND:
            reason = f"{service} has no usable endpoint"
        case Verdict.REJECTED_UNDEFINED_PORT:
            reason = f"the VIP is {service}'s, which does not define this port"
        case _:
            return DROPPED[traced.verdict]
    return f"{reason}: {REFUSED[traced.answer] if traced.answer else 'dropped, since no answer could be made'}"


def _handed(traced: Trace) -> str:
    if traced.leaves:
        return "handed to the next hop towards another node"
    return f"handed straight to the pod at link {_link(traced.handed_to)}"


def _link(ifindex: int) -> str:
    """Its name; #IFINDEX where that can't be seen from here."""
    try:
        return if_indextoname(ifindex)
    except OSError:
        return f"#{ifindex}"


def trace_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for people."""
    first = FIRST[Protocol[report["protocol"]]]
    yield f"packet    {first} {report['source']} → {report['destination']}, the first of a connection"
    yield f"frontend  {report['frontend']} of {report['service']}" if report["frontend"] else "frontend  none"
    yield from _set_lines(report)
    if backend := report["backend"]:
        place = " on this node" if backend["local"] else ""
        how = "the one that this client used last" if report["affine"] else f"chosen {HOW[report['balancing']]}"
        yield f"backend   {backend['endpoint']}{place}, {how} (id {backend['id']}, {backend['state']})"
    yield f"verdict   {report['verdict']}: {report['why']}"
    if becomes := report["becomes"]:
        yield f"becomes   {becomes['source']} → {becomes['destination']}"


def _set_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The lines about the endpoints to choose from, and the rule that picked them."""
    explained, choices = report["explained"], report["choices"]
    if report["frontend"] is None:
        return
    if explained is None:
        yield "rule      only the daemon could tell, and it does not; the maps hold the set alone"
        yield f"used      {_shortened(choices)}"
        return
    used = [each["endpoint"] for each in explained["endpoints"] if each["used"]]
    left_out = [f"{each['endpoint']} ({each['left_out']})" for each in explained["endpoints"] if not each["used"]]
    yield f"rule      {explained['rule']}"
    if used or left_out:
        yield f"used      {_shortened(used)}"
        yield f"left out  {_shortened(left_out)}"


def _shortened(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - LISTED} more (see explain)" if len(texts) > LISTED else ""
    return ", ".join(texts[:LISTED]) + more if texts else "none"
