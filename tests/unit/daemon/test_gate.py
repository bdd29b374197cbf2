"""Mode off hides Services from the reconciler, and nothing else."""

from collections.abc import Sequence

from kproxy_ebpf.daemon.gate import Backlog, Gate
from kproxy_ebpf.model.services import Service, ServiceName
from kproxy_ebpf.model.snapshot import Event, Kind, ObjectRef, Refused, Removed, Snapshot, Synced, Upserted


def service(name: str, **changes: object) -> Upserted:
    return Upserted(ObjectRef(Kind.SERVICE, "default", name), Service(ServiceName("default", name), (), (), **changes))


class Downstream:
    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.batches: list[Sequence[Event]] = []

    def __call__(self, events: Sequence[Event]) -> None:
        self.batches.append(events)
        for event in events:
            self.snapshot.apply(event)

    @property
    def names(self) -> set[str]:
        return {name.name for name in self.snapshot.services}


def test_open_everything_passes() -> None:
    downstream = Downstream()
    batch = [service("a"), Synced(Kind.SERVICE)]
    Gate(downstream).feed(batch)
    assert downstream.batches == [batch]


def test_shutting_removes_what_opening_brings_back() -> None:
    downstream = Downstream()
    gate = Gate(downstream)
    gate.feed([service("a"), service("b")])
    gate.set(False)
    assert downstream.names == set()
    gate.set(True)
    assert downstream.names == {"a", "b"}


def test_what_changed_behind_a_shut_gate_is_right_when_it_opens() -> None:
    downstream = Downstream()
    gate = Gate(downstream, is_open=False)
    refused = Refused(ObjectRef(Kind.SERVICE, "default", "bad"), "no port")
    gate.feed([service("a"), service("gone"), service("bad"), Synced(Kind.SERVICE)])
    gate.feed([service("a", type="NodePort"), Removed(ObjectRef(Kind.SERVICE, "default", "gone")), refused])
    assert downstream.names == set()
    assert downstream.snapshot.synced == {Kind.SERVICE}
    assert list(downstream.snapshot.refused.values()) == [refused]
    gate.set(True)
    assert downstream.names == {"a"}
    assert downstream.snapshot.services[ServiceName("default", "a")].type == "NodePort"


def test_setting_it_as_it_is_emits_nothing() -> None:
    downstream = Downstream()
    gate = Gate(downstream)
    gate.feed([service("a")])
    gate.set(True)
    assert len(downstream.batches) == 1


def test_a_backlog_keeps_the_order_and_then_passes_everything_on() -> None:
    downstream, backlog = Downstream(), Backlog()
    backlog.feed([service("a")])
    backlog.feed([Removed(ObjectRef(Kind.SERVICE, "default", "a")), Synced(Kind.SERVICE)])
    assert downstream.batches == []
    backlog.release(downstream)
    assert downstream.names == set()
    assert downstream.snapshot.synced == {Kind.SERVICE}
    backlog.feed([service("b")])
    assert downstream.names == {"b"}
