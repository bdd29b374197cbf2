"""Events that come before the reconciler does."""

from collections.abc import Sequence

from kproxy_ebpf.daemon.backlog import Backlog
from kproxy_ebpf.model.services import Service, ServiceName
from kproxy_ebpf.model.snapshot import Event, Kind, ObjectRef, Removed, Snapshot, Synced, Upserted


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
