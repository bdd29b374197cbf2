"""What the reconciler does becomes logs, metrics and health."""

from collections import Counter

import pytest
import structlog.testing

from kproxy_ebpf.daemon.reports import Reports, at_random_sentence, full_sentence, write_counts
from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.service_tables import Frontend, FrontendKey, TableWrites
from kproxy_ebpf.model.services import EndpointSlice, Node, ServiceName
from kproxy_ebpf.model.snapshot import Event, Kind, ObjectRef, Refused, Removed, Snapshot, Synced, Unreadable, Upserted
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics
from kproxy_ebpf.reconcile.services import Sync

WEB = ServiceName("default", "web")
BAD = ObjectRef(Kind.SERVICE, "default", "bad")


class Told:
    def __init__(self) -> None:
        self.changes = 0
        self.warnings: list[Refused] = []
        self.metrics, self.health, self.snapshot = Metrics(), Health(60), Snapshot()
        self.reports = Reports(self.metrics, self.health, self.changed, self.warnings.append)

    def changed(self) -> None:
        self.changes += 1

    def feed(self, *events: Event) -> None:
        for event in events:
            self.snapshot.apply(event)
        self.reports.events(events, self.snapshot)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def told() -> Told:
    return Told()


def slice_event() -> Upserted:
    ref = ObjectRef(Kind.ENDPOINT_SLICE, "default", "web-1")
    return Upserted(ref, EndpointSlice("default", "web-1", WEB, 4, (), ()))


def test_a_refused_object_is_named_everywhere_until_it_is_gone(told: Told) -> None:
    with structlog.testing.capture_logs() as logs:
        told.feed(Refused(BAD, "spec.ports[0].port: field required", Unreadable.ABSENT))
    assert logs[0]["object"] == "Service default/bad"
    assert "field required" in logs[0]["reason"]
    assert told.sample("kproxy_ebpf_refused_objects", kind="Service") == 1
    assert "Service default/bad: spec.ports[0].port" in told.health.problems["refused"]
    assert [warning.ref for warning in told.warnings] == [BAD]
    told.feed(Removed(BAD))
    assert told.sample("kproxy_ebpf_refused_objects", kind="Service") == 0
    assert "refused" not in told.health.problems


def test_changes_are_pending_until_a_sync_leaves_none(told: Told) -> None:
    told.feed(slice_event(), slice_event())
    name = "kubeproxy_sync_proxy_rules_endpoint_changes"
    assert told.sample(f"{name}_total") == told.sample(f"{name}_pending") == 2
    told.reports.synced(Sync(0.01, 1, 5, {}, ()))
    assert told.sample(f"{name}_pending") == 2
    told.reports.synced(Sync(0.01, 1, 0, {}, (0.2, -0.1)))
    assert told.sample(f"{name}_pending") == 0
    assert told.sample("kubeproxy_network_programming_duration_seconds_count") == 2
    assert told.sample("kubeproxy_sync_proxy_rules_duration_seconds_count") == 2


def test_writes_are_counted_by_table(told: Told) -> None:
    writes = TableWrites(
        frontends={FrontendKey(b"\1\1\1\1", 80, 6): Frontend(1, 0, 2)},
        removed_frontends={FrontendKey(b"\1\1\1\1", 81, 6)},
        slots={0: (1, 2)},
        backend_states={1: (2, 0)},
    )
    assert write_counts(writes) == {"frontends": 2, "slots": 2, "backends": 1}
    told.reports.synced(Sync(0.0, 1, 0, {6: writes}, ()))
    assert told.sample("kproxy_ebpf_map_writes_total", table="frontends_v6") == 2
    assert told.sample("kproxy_ebpf_map_writes_total", table="source_ranges_v6") is None


def test_frontends_without_a_local_endpoint_are_told_by_family(told: Told) -> None:
    told.reports.synced(Sync(0.0, 1, 0, {}, (), {4: 2, 6: 0}))
    name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
    assert told.sample(name, traffic_policy="internal", ip_family="IPv4") == 2
    assert told.sample(name, traffic_policy="internal", ip_family="IPv6") == 0


def test_a_failed_first_sync_is_unhealthy_and_a_later_failure_is_not_yet(told: Told) -> None:
    told.reports.write_failed(4, OSError("no memory"))
    assert "no memory" in told.health.errors["first-sync"]
    told.reports.synced(Sync(0.0, 1, 0, {}, ()))
    assert told.health.errors == {}
    told.reports.write_failed(4, OSError("no memory"))
    assert told.health.errors == {}
    assert told.sample("kproxy_ebpf_sync_failures_total") == 2


def test_a_full_table_is_counted_and_named(told: Told) -> None:
    with structlog.testing.capture_logs() as logs:
        told.reports.table_full(WEB, MapFullError("frontends_v4", 10))
    assert (logs[0]["table"], logs[0]["service"]) == ("frontends_v4", "default/web")
    assert told.sample("kproxy_ebpf_table_full_total", table="frontends_v4") == 1
    assert full_sentence(Counter({"frontends_v4": 2})) == "table frontends_v4 has no room for 2 Services"
    assert full_sentence(Counter()) is None


def test_a_node_on_its_way_out_is_not_eligible(told: Told) -> None:
    told.feed(Upserted(ObjectRef(Kind.NODE, "", "n"), Node("n", eligible=False)))
    assert not told.health.node_eligible
    told.feed(Upserted(ObjectRef(Kind.NODE, "", "n"), Node("n")))
    assert told.health.node_eligible


def test_services_without_room_for_maglev_are_counted_for_people() -> None:
    assert at_random_sentence(0) is None
    assert "6342 Services are balanced at random" in str(at_random_sentence(6342))


def test_a_node_without_its_node_object_is_told_until_it_is_there(told: Told) -> None:
    ref = ObjectRef(Kind.NODE, "", "n1")
    told.feed(Synced(Kind.SERVICE))
    assert "node" not in told.health.problems
    told.feed(Synced(Kind.NODE))
    assert "check --node-name" in told.health.problems["node"]
    told.feed(Upserted(ref, Node("n1")))
    assert "node" not in told.health.problems
    told.feed(Removed(ref))
    assert "node" in told.health.problems
    told.feed(Upserted(ref, Node("n1")), Synced(Kind.NODE))
    assert "node" not in told.health.problems
