"""The command line: flags, variables, errors in one line with their code, tables for people and programs."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from kproxy_ebpf import cli
from kproxy_ebpf.cli import tables
from kproxy_ebpf.cli.common import show
from kproxy_ebpf.cli.monitor import event_line, event_row
from kproxy_ebpf.cli.rows import backend_rows, flow_rows, service_rows
from kproxy_ebpf.cli.status import report_lines
from kproxy_ebpf.contract.layouts import (
    BackendFlags,
    BackendState,
    Direction,
    FlowFlags,
    FlowState,
    FrontendFlags,
    Verdict,
)
from kproxy_ebpf.datapath.maps.events import VerdictEvent
from kproxy_ebpf.errors import BusyError
from kproxy_ebpf.model.flows import FlowRecord, FlowTuple
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, TableContents
from kproxy_ebpf.model.services import packed

HEAVY = ("bcc", "kubernetes_asyncio", "aiohttp", "pydantic", "pyroute2", "prometheus_client", "uvloop", "tabulate")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, kproxy_ebpf.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(HEAVY) & set(modules)


def test_help_documents_exit_codes() -> None:
    result = CliRunner().invoke(cli.commands, ["--help"])
    assert result.exit_code == 0
    assert "75  busy" in result.output


def test_no_summary_is_cut_off() -> None:
    summaries = CliRunner().invoke(cli.commands, ["--help"], terminal_width=80).output.partition("Commands:")[2]
    assert summaries
    assert "..." not in summaries


@pytest.mark.parametrize("name", sorted(cli.commands.commands))
def test_every_flag_has_a_variable(name: str) -> None:
    for parameter in cli.commands.commands[name].params:
        if isinstance(parameter, click.Option) and parameter.name != "help":
            assert parameter.envvar == f"KPROXY_{parameter.opts[-1].strip('-').replace('-', '_').upper()}"


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "--attach", "magic"], 64, "--attach"),
        (["dance"], 64, "dance"),
        (["run", "--manifests", "/x", "--kubeconfig", "/y"], 64, "exclude each other"),
        (["run", "--config", "/x", "--config-map", "a/b"], 64, "exclude each other"),
        (["run", "--manifests", "/x", "--config-map", "a/b"], 64, "needs an API server"),
        (["services", "--bpffs", "/nonexistent"], 66, "nothing of ours is pinned in /nonexistent"),
    ],
)
def test_an_error_is_one_line_with_its_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    assert run_main(monkeypatch, *arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kproxy-ebpf: error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_an_own_error_exits_with_its_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def busy(*_: object) -> None:
        raise BusyError("port 1 is taken")

    monkeypatch.setattr(tables, "generation_in_force", busy)
    assert run_main(monkeypatch, "flows") == 75
    assert capsys.readouterr().err == "kproxy-ebpf: error: port 1 is taken\n"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            PermissionError(13, "Permission denied", "/sys/fs/bpf/x"),
            77,
            "/sys/fs/bpf/x: Permission denied: run as root",
        ),
        (OSError(12, "bpf_obj_get counters: no memory"), 71, "bpf_obj_get counters: no memory"),
    ],
)
def test_an_error_of_the_system_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, code: int, words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tables, "generation_in_force", fail)
    assert run_main(monkeypatch, "flows") == code
    assert words in capsys.readouterr().err


def test_status_of_a_node_where_nothing_ever_ran(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.commands, ["status", "--bpffs", str(tmp_path), "-o", "json"])
    assert result.exit_code == 0
    report = json.loads(result.output)
    assert report["daemon"] == {"running": False}
    assert report["generation"] is None


def test_status_tells_of_a_refused_object_once() -> None:
    report = {
        "daemon": {
            "running": True,
            "version": "1",
            "node": "node1",
            "pid": 7,
            "refused": [{"object": "Service default/bad", "reason": "spec.ports: field required"}],
        },
        "health": {"status": 200, "errors": {}, "problems": {"refused": "1 refused, such as …", "source": "gone"}},
        "generation": "abc",
        "tables": {},
        "verdicts": {},
    }
    problems = [line for line in report_lines(report) if line.startswith("problem")]
    assert problems == [
        "problem     gone",
        "problem     Service default/bad is refused: spec.ports: field required",
    ]


VIP, ENDPOINT = packed("10.96.0.1"), packed("10.244.1.7")
CONTENTS = TableContents(
    frontends={
        FrontendKey(VIP, 80, 6): Frontend(1, 5, 2, affinity_seconds=60),
        FrontendKey(VIP, 53, 17): Frontend(2, 0, 0),
        FrontendKey(VIP, 54, 17): Frontend(9, 0, 0, flags=FrontendFlags.DROP),
        FrontendKey(VIP, 0, 0): Frontend(1, 0, 0, flags=FrontendFlags.VIP_ONLY),
    },
    slots={5: (4, 3)},
    backends={
        3: Backend(ENDPOINT, 8080, BackendState.USABLE, BackendFlags.READY, 1, 1),
        4: Backend(packed("10.244.2.7"), 8080, BackendState.KEEP, BackendFlags.LOCAL, 2, 1),
        5: Backend(packed("10.244.2.8"), 8080, BackendState.FREE, 0, 2, 1),
    },
)


def test_services_show_what_each_frontend_leads_to() -> None:
    rows = list(service_rows(4, CONTENTS, {"1": "default/web:http"}))
    assert [(row["service"], row["port"], row["protocol"], row["verdict"]) for row in rows] == [
        ("#2", 53, "UDP", "reject"),
        ("#9", 54, "UDP", "drop"),
        ("default/web:http", 80, "TCP", "balance"),
    ]
    assert rows[2]["vip"] == "10.96.0.1"
    assert rows[2]["backends"] == 2
    assert rows[2]["backend_ids"] == [3, 4]
    assert rows[2]["affinity"] == "60 s"


def test_backends_in_use_are_shown_with_their_state() -> None:
    rows = list(backend_rows(4, CONTENTS, {}))
    assert [(row["id"], row["address"], row["state"], row["ready"], row["local"]) for row in rows] == [
        (3, "10.244.1.7", "usable", True, False),
        (4, "10.244.2.7", "keep", False, True),
    ]


def test_a_connection_is_one_row() -> None:
    client = packed("fd00::9")
    forward = FlowTuple(client, 1234, packed("fd00::1"), 80, 6, Direction.FROM_POD)
    to = FlowTuple(client, 1234, packed("fd00::7"), 8080, 6, Direction.TO_POD)
    numbers = {"backend_id": 3, "epoch": 1, "service_id": 1, "idle_seconds": 2, "age_seconds": 70, "ifindex": 7}
    entries = [
        FlowRecord(6, forward, to, FlowState.ESTABLISHED, FlowFlags(0), **numbers),
        FlowRecord(6, to, forward, FlowState.ESTABLISHED, FlowFlags.REPLY, **numbers),
    ]
    (row,) = flow_rows(entries, {"1": "default/web:http"})
    assert row["client"] == "[fd00::9]:1234"
    assert row["vip"] == "[fd00::1]:80"
    assert row["backend"] == "[fd00::7]:8080"
    assert (row["service"], row["state"], row["idle"]) == ("default/web:http", "established", "2 s")


EVENT = VerdictEvent(
    time_ns=1_500_000,
    verdict=Verdict.BALANCED,
    family=4,
    protocol=6,
    direction=Direction.FROM_POD,
    ifindex=3,
    length=74,
    source=packed("10.244.1.2"),
    source_port=40000,
    destination=VIP,
    destination_port=80,
    to_source=packed("10.244.1.2"),
    to_source_port=40000,
    to_destination=ENDPOINT,
    to_destination_port=8080,
)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "10.244.1.2:40000 → 10.96.0.1:80 balanced → 10.244.1.7:8080 (74 bytes)"),
        (
            {"to_source_port": 50000},
            "10.244.1.2:40000 → 10.96.0.1:80 balanced as 10.244.1.2:50000 → 10.244.1.7:8080 (74 bytes)",
        ),
        (
            {"verdict": Verdict.UNTOUCHED, "to_destination": VIP, "to_destination_port": 80},
            "10.244.1.2:40000 → 10.96.0.1:80 untouched (74 bytes)",
        ),
    ],
)
def test_an_event_is_a_line_that_tells_what_became_of_the_packet(changes: dict[str, Any], line: str) -> None:
    row = event_row(replace(EVENT, **changes), datetime(2026, 1, 1, tzinfo=UTC), "vethx")
    assert row["time"] == "2026-01-01T00:00:00.001500Z"
    assert event_line(row) == f"00:00:00.001500 vethx from_pod TCP {line}"


def test_tables_and_json_hold_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "a", "port": 80, "ready": False, "hidden": 1}]
    show(rows, ("name", "port", "ready"), "json")
    assert json.loads(capsys.readouterr().out) == rows
    show(rows, ("name", "port", "ready"), "table")
    assert capsys.readouterr().out.split() == ["NAME", "PORT", "READY", "a", "80", "no"]
