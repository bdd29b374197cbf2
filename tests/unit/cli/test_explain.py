"""`explain` in words, as rows and notes."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result
from explained import NAME, NODE, explanation, snapshot

from kproxy_ebpf import cli
from kproxy_ebpf.cli.explain import explanation_notes, explanation_rows
from kproxy_ebpf.errors import UsageError
from kproxy_ebpf.model.services import ServiceName
from kproxy_ebpf.plan.services.claims import Conflict
from kproxy_ebpf.plan.services.explain import explain
from kproxy_ebpf.plan.services.plan import PlanSettings


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


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.commands, words)


@pytest.mark.parametrize("name", ["web", "/web", "shop/", "a/b/c"])
def test_explain_wants_a_namespace_and_a_name(name: str) -> None:
    assert isinstance(invoke("explain", name).exception, UsageError)


def test_a_service_is_what_is_explained_by_default() -> None:
    named, default = invoke("explain", "service", "web"), invoke("explain", "web")
    assert str(named.exception) == str(default.exception) == "'web' is no Service: write NAMESPACE/NAME"
    assert isinstance(invoke("explain", "-o", "json", "web").exception, UsageError)
    assert "policy" in invoke("explain", "--help").output
    assert "--metrics-address" in invoke("explain", "service", "--help").output
    assert invoke("explain").exit_code == 2
