"""`explain` and `trace` in words: how questions are read, and how answers are told."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession
from click.testing import CliRunner, Result
from prometheus_client import CollectorRegistry

from kproxy_ebpf import cli
from kproxy_ebpf.cli.daemon_client import NoAnswerError, UnknownServiceError, ask_explanation
from kproxy_ebpf.cli.explain import explanation_notes, explanation_rows
from kproxy_ebpf.cli.trace import explained_frontend, parse_packet, service_of, trace_lines, trace_report
from kproxy_ebpf.contract.layouts import BackendFlags, BackendState, Direction, FrontendFlags, Verdict
from kproxy_ebpf.daemon.explain import Explainer, plain
from kproxy_ebpf.datapath.frames import Answer
from kproxy_ebpf.datapath.trace import Trace
from kproxy_ebpf.errors import BusyError, UsageError
from kproxy_ebpf.model.flows import FlowTuple
from kproxy_ebpf.model.service_tables import Backend, Frontend
from kproxy_ebpf.model.services import (
    Endpoint,
    EndpointSlice,
    Node,
    Protocol,
    Service,
    ServiceName,
    ServicePort,
    SlicePort,
    packed,
    source_range,
)
from kproxy_ebpf.model.snapshot import Kind, ObjectRef, Snapshot, Upserted
from kproxy_ebpf.observe import server
from kproxy_ebpf.plan.services.claims import Conflict
from kproxy_ebpf.plan.services.explain import explain
from kproxy_ebpf.plan.services.plan import PlanSettings

NODE = Node("here", zone="near")
NAME = ServiceName("shop", "web")
VIP, LB = packed("10.96.0.1"), packed("192.0.2.1")
NEAR, FAR, SICK = packed("10.244.1.3"), packed("10.244.2.3"), packed("10.244.1.4")
SERVICE = Service(
    NAME,
    (VIP,),
    (ServicePort("http", Protocol.TCP, 80),),
    load_balancer_ips=(LB,),
    source_ranges=(source_range("10.0.0.0/8"),),
    affinity_seconds=60,
)
SLICE = EndpointSlice(
    *("shop", "web-1", NAME, 4, (SlicePort("http", Protocol.TCP, 8080),)),
    (
        Endpoint(NEAR, node_name="here", zone_hints=("near",)),
        Endpoint(FAR, zone_hints=("far", "off")),
        Endpoint(SICK, ready=False, serving=False),
    ),
)


def snapshot() -> Snapshot:
    known = Snapshot(node=NODE)
    known.apply(Upserted(ObjectRef(Kind.SERVICE, *NAME), SERVICE))
    known.apply(Upserted(ObjectRef(Kind.ENDPOINT_SLICE, "shop", "web-1"), SLICE))
    return known


def explanation(*conflicts: Conflict) -> dict[str, Any]:
    """As it arrives from the daemon."""
    found: dict[str, Any] = json.loads(json.dumps(plain(explain(NAME, snapshot(), NODE, PlanSettings(), conflicts))))
    return found


# explain


def test_each_endpoint_is_a_row_with_its_rule() -> None:
    rows = list(explanation_rows(explanation()))
    zone = "ready endpoints whose hints name this zone"
    assert [(row["frontend"], row.get("endpoint"), row.get("used"), row["why"]) for row in rows] == [
        ("10.96.0.1:80/TCP", "10.244.1.3:8080", "yes", zone),
        ("10.96.0.1:80/TCP", "10.244.1.4:8080", "no", "not ready"),
        ("10.96.0.1:80/TCP", "10.244.2.3:8080", "no", "its hints name other zones: far, off"),
        ("192.0.2.1:80/TCP", "10.244.1.3:8080", "yes", zone),
        ("192.0.2.1:80/TCP", "10.244.1.4:8080", "no", "not ready"),
        ("192.0.2.1:80/TCP", "10.244.2.3:8080", "no", "its hints name other zones: far, off"),
        ("10.96.0.1 on other ports", None, None, "ports that the Service does not define: rejected"),
    ]


def test_a_frontend_of_an_older_service_is_one_row() -> None:
    key = next(iter(explain(NAME, snapshot(), NODE, PlanSettings()).frontends)).plan.key
    held = explanation(Conflict(4, key, winner=ServiceName("shop", "older"), loser=NAME))
    rows = [row for row in explanation_rows(held) if row["frontend"] == "10.96.0.1:80/TCP"]
    assert [row["why"] for row in rows] == ["claimed by shop/older too, which is older and has it"]


def test_notes_tell_of_ranges_and_affinity() -> None:
    notes = list(explanation_notes({**explanation(), "problems": ["something is missing"]}))
    assert "192.0.2.1:80/TCP admits clients of 10.0.0.0/8 only; others are dropped" in notes
    assert not any("10.96.0.1:80/TCP admits" in note for note in notes)
    assert "10.96.0.1:80/TCP keeps a client with one backend until it is idle for 60 s" in notes
    assert notes[-1] == "something is missing"


class FakeReconciler:
    first_sync_done = True
    settings = PlanSettings()
    conflicts: tuple[Conflict, ...] = ()

    def __init__(self) -> None:
        self.snapshot = snapshot()

    def full_tables_of(self, name: ServiceName) -> list[str]:
        return ["slots_v4"] if name == NAME else []


def explainer(reconciler: Any, *, is_on: bool = True) -> Explainer:
    return Explainer("here", lambda: is_on, lambda: reconciler)


@pytest.mark.parametrize(
    ("name", "is_on", "status", "state"),
    [("web", True, 200, "served"), ("nobody", True, 404, "unknown"), ("nobody", False, 200, "off")],
)
def test_the_daemon_answers_with_a_status(name: str, is_on: bool, status: int, state: str) -> None:
    answered, body = explainer(FakeReconciler(), is_on=is_on).answer("shop", name)
    assert (answered, body["state"], body["node"]) == (status, state, "here")
    assert bool(body["reason"]) == (state != "served")


def test_the_daemon_says_that_a_service_does_not_fit() -> None:
    _, body = explainer(FakeReconciler()).answer(*NAME)
    assert body["problems"] == ["table slots_v4 has no room for it: what it had in the tables before stays"]


def test_the_daemon_knows_nothing_before_it_has_read_the_cluster() -> None:
    reconciler = FakeReconciler()
    reconciler.first_sync_done = False
    for each in (None, reconciler):
        assert explainer(each).answer(*NAME)[0] == 503


@asynccontextmanager
async def served(reconciler: Any) -> AsyncIterator[str]:
    """The address of a daemon's metrics server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    async with server.serving(server.metrics_app(CollectorRegistry(), explainer(reconciler).answer), address, "--x"):
        yield address


async def test_an_explanation_over_http() -> None:
    async with served(FakeReconciler()) as address:
        assert await asyncio.to_thread(ask_explanation, address, *NAME) == {
            **explanation(),
            "problems": explainer(FakeReconciler()).answer(*NAME)[1]["problems"],
        }
        with pytest.raises(UnknownServiceError, match="there is no Service shop/a%/b"):
            await asyncio.to_thread(ask_explanation, address, "shop", "a%/b")
    async with served(None) as address:
        with pytest.raises(BusyError, match="ask again"):
            await asyncio.to_thread(ask_explanation, address, *NAME)
    with pytest.raises(NoAnswerError, match=f"{address}.*--metrics-address"):
        await asyncio.to_thread(ask_explanation, address, *NAME)


@pytest.mark.parametrize(
    ("peer", "own", "here"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", True),
        ("::1", "::1", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.244.1.7", "10.0.0.1", False),
        ("fd00::7", "fd00::1", False),
        ("", "", False),
    ],
)
def test_who_is_on_this_machine(peer: str, own: str, here: bool) -> None:
    assert server.is_from_here(peer, own) == here


async def test_clients_elsewhere_get_metrics_but_no_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "is_from_here", lambda *_: False)
    async with served(FakeReconciler()) as address, ClientSession() as client:
        for path, status in (("explain/shop/web", 403), ("metrics", 200)):
            async with client.get(f"http://{address}/{path}") as answer:
                assert answer.status == status


# trace

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
        (Trace(PACKET, Verdict.REJECTED_NO_BACKEND, Frontend(7, 0, 0), answer=Answer.RESET), "TCP RST"),
        (Trace(PACKET, Verdict.REJECTED_NO_BACKEND, Frontend(7, 0, 0)), "no answer could be made"),
        (
            Trace(
                PACKET,
                Verdict.REJECTED_UNDEFINED_PORT,
                Frontend(7, 0, 0, FrontendFlags.VIP_ONLY),
                answer=Answer.UNREACHABLE,
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


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.commands, words)


@pytest.mark.parametrize("name", ["web", "/web", "shop/", "a/b/c"])
def test_explain_wants_a_namespace_and_a_name(name: str) -> None:
    assert isinstance(invoke("explain", name).exception, UsageError)
