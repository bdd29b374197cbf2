"""An event of the programs as one line."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from kproxy_ebpf.cli.monitor import event_line, event_row
from kproxy_ebpf.contract.layouts import Direction, Verdict
from kproxy_ebpf.datapath.maps.events import VerdictEvent
from kproxy_ebpf.model.services import packed

VIP, ENDPOINT = packed("10.96.0.1"), packed("10.244.1.7")
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
