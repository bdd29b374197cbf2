"""`trace` in words: how a packet is read, and how the trace is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from explained import NEAR, VIP, explanation

from kproxy_ebpf.cli.trace import explained_frontend, parse_packet, service_of, trace_lines, trace_report
from kproxy_ebpf.contract.layouts import BackendFlags, BackendState, Direction, FrontendFlags, Verdict
from kproxy_ebpf.datapath.frames import Refusal
from kproxy_ebpf.datapath.trace import Trace
from kproxy_ebpf.errors import UsageError
from kproxy_ebpf.model.flows import FlowTuple
from kproxy_ebpf.model.service_tables import Backend, Frontend
from kproxy_ebpf.model.services import packed

FROM = Direction.FROM_POD
CLIENT = packed("10.244.1.2")


@pytest.mark.parametrize(
    ("source", "destination", "found"),
    [
        ("10.244.1.2", "10.96.0.1:80/tcp", (CLIENT, 0, VIP, 80, 6, FROM)),
        ("10.244.1.2:4000", "10.96.0.1:53/UDP", (CLIENT, 4000, VIP, 53, 17, FROM)),
        ("fd00::2", "[fd00::1]:80/sctp", (packed("fd00::2"), 0, packed("fd00::1"), 80, 132, FROM)),
        ("[fd00::2]:9", "[::1]:80/tcp", (packed("fd00::2"), 9, packed("::1"), 80, 6, FROM)),
        ("[fd00::2]", "[::1]:80/tcp", (packed("fd00::2"), 0, packed("::1"), 80, 6, FROM)),
    ],
)
def test_packets_are_read(source: str, destination: str, found: tuple[Any, ...]) -> None:
    assert parse_packet(source, destination) == FlowTuple(*found)


@pytest.mark.parametrize(
    ("source", "destination", "words"),
    [
        ("10.0.0.1", "10.0.0.2:80", "no destination"),
        ("10.0.0.1", "10.0.0.2:80/icmp", "no destination"),
        ("10.0.0.1", "/tcp", "no destination"),
        ("10.0.0.1", "10.0.0.2/tcp", "has no port"),
        ("10.0.0.1", "10.0.0.2:0/tcp", "has no port"),
        ("fd00::1", "fd00::2:80/tcp", "in brackets"),
        ("10.0.0.1", "web:80/tcp", "'web:80' is no address"),
        ("10.0.0.300", "10.0.0.2:80/tcp", "'10.0.0.300' is no address"),
        ("10.0.0.1:x", "10.0.0.2:80/tcp", "'10.0.0.1:x' is no address"),
        ("10.0.0.1", "10.0.0.2:65536/tcp", "at most 65535"),
        ("10.0.0.1", "[fd00::2]:80/tcp", "two address families"),
    ],
)
def test_what_is_no_packet_is_a_sentence(source: str, destination: str, words: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        parse_packet(source, destination)
    assert words in str(caught.value)


PACKET = FlowTuple(CLIENT, 61000, VIP, 80, 6, FROM)
CHOSEN = Backend(NEAR, 8080, BackendState.USABLE, BackendFlags.LOCAL, 1, 7)
BALANCED = Trace(
    PACKET,
    Verdict.BALANCED,
    Frontend(7, 0, 1),
    choices=(CHOSEN,),
    backend_id=3,
    backend=CHOSEN,
    becomes=FlowTuple(CLIENT, 61000, NEAR, 8080, 6, FROM),
)
NAMES: Mapping[str, str] = {"7": "shop/web:http"}


def told(trace: Trace, *, daemon: bool = True) -> dict[str, str]:
    """The lines by their first word."""
    explained = explained_frontend(trace, explanation()) if daemon else None
    lines = trace_lines(json.loads(json.dumps(trace_report(trace, service_of(trace, NAMES), explained))))
    return {line.split()[0] if line[:4] != "left" else "left": line for line in lines}


def test_a_trace_is_told_with_its_rule() -> None:
    assert list(told(BALANCED).values()) == [
        "packet    TCP SYN 10.244.1.2:61000 → 10.96.0.1:80, the first of a connection",
        "frontend  10.96.0.1:80/TCP of shop/web:http",
        "rule      ready endpoints whose hints name this zone",
        "used      10.244.1.3:8080",
        "left out  10.244.1.4:8080 (not ready), 10.244.2.3:8080 (its hints name other zones: far, off)",
        "backend   10.244.1.3:8080 on this node, chosen at random (id 3, usable)",
        "verdict   balanced: translated, then left to the host's routes",
        "becomes   10.244.1.2:61000 → 10.244.1.3:8080",
    ]


def test_a_trace_without_the_daemon_tells_what_the_maps_hold() -> None:
    lines = told(BALANCED, daemon=False)
    assert "only the daemon could tell" in lines["rule"]
    assert lines["used"] == "used      10.244.1.3:8080"
    assert "left" not in lines


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        (Trace(PACKET, Verdict.UNTOUCHED), "untouched: no frontend"),
        (Trace(PACKET, Verdict.REJECTED_NO_BACKEND, Frontend(7, 0, 0), answer=Refusal.RESET), "TCP RST"),
        (Trace(PACKET, Verdict.REJECTED_NO_BACKEND, Frontend(7, 0, 0)), "no answer could be made"),
        (
            Trace(
                PACKET,
                Verdict.REJECTED_UNDEFINED_PORT,
                Frontend(7, 0, 0, FrontendFlags.VIP_ONLY),
                answer=Refusal.UNREACHABLE,
            ),
            "shop/web:http's, which does not define this port: the pod gets an ICMP port unreachable",
        ),
        *((Trace(PACKET, verdict, Frontend(7, 0, 1)), "dropped: ") for verdict in Verdict if "DROPPED" in verdict.name),
    ],
)
def test_every_verdict_has_its_sentence(trace: Trace, words: str) -> None:
    lines = told(trace)
    assert words in lines["verdict"]
    assert "becomes" not in lines


def test_a_long_set_is_cut() -> None:
    choices = tuple(CHOSEN._replace(port=port) for port in range(1, 15))
    line = told(Trace(PACKET, Verdict.BALANCED, Frontend(7, 0, 14), choices), daemon=False)["used"]
    assert line.count("10.244.1.3") == 10
    assert "and 4 more" in line
