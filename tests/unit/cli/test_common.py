"""Rows for people and for programs."""

import json

import pytest

from kproxy_ebpf.cli.common import show


def test_tables_and_json_hold_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "a", "port": 80, "ready": False, "hidden": 1}]
    show(rows, ("name", "port", "ready"), "json")
    assert json.loads(capsys.readouterr().out) == rows
    show(rows, ("name", "port", "ready"), "table")
    assert capsys.readouterr().out.split() == ["NAME", "PORT", "READY", "a", "80", "no"]
