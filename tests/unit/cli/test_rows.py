"""Rows of Services, backends and flows, as the commands show them."""

from kproxy_ebpf.cli.rows import backend_rows, flow_rows, service_rows
from kproxy_ebpf.contract.layouts import BackendFlags, BackendState, Direction, FlowFlags, FlowState, FrontendFlags
from kproxy_ebpf.model.flows import FlowRecord, FlowTuple
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, TableContents
from kproxy_ebpf.model.services import packed

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
