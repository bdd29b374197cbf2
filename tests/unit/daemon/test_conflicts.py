"""The owner of a Service that claims what an older one has is told so, once."""

import pytest
import structlog.testing

from kproxy_ebpf.daemon.cluster_source import Cluster
from kproxy_ebpf.daemon.conflicts import Conflicts, sentence
from kproxy_ebpf.kube.recorder import About
from kproxy_ebpf.model.service_tables import FrontendKey
from kproxy_ebpf.model.services import Protocol, Service, ServiceName, packed
from kproxy_ebpf.model.snapshot import Kind
from kproxy_ebpf.plan.services.claims import Conflict

OLD, NEW = ServiceName("default", "old"), ServiceName("shop", "new")
SERVICES = {NEW: Service(NEW, (), (), uid="u-1"), OLD: Service(OLD, (), ())}
TAKEN = Conflict(4, FrontendKey(packed("192.0.2.9"), 80, Protocol.TCP), OLD, NEW)
WORDS = "192.0.2.9:80/TCP is default/old's, and shop/new wants it too"


class Recorder:
    def __init__(self) -> None:
        self.recorded: list[tuple[About, str, str]] = []

    def record(self, about: About, reason: str, note: str) -> None:
        self.recorded.append((about, reason, note))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def conflicts(recorder: Recorder) -> Conflicts:
    cluster = Cluster(source=None, node_name="node1", recorder=recorder)  # type: ignore[arg-type]
    return Conflicts(cluster.warn_conflict)


def test_the_loser_gets_one_event_and_the_log_a_line(conflicts: Conflicts, recorder: Recorder) -> None:
    with structlog.testing.capture_logs() as logs:
        conflicts.tell_new([TAKEN], SERVICES)
        conflicts.tell_new([TAKEN], SERVICES)
    assert recorder.recorded == [(About(Kind.SERVICE, "new", "shop", "u-1"), "FrontendTaken", WORDS)]
    assert [line["reason"] for line in logs] == [WORDS]


def test_a_conflict_that_comes_back_is_told_again(conflicts: Conflicts, recorder: Recorder) -> None:
    for now in ([TAKEN], [], [TAKEN]):
        conflicts.tell_new(now, SERVICES)
    assert len(recorder.recorded) == 2


def test_of_a_loser_that_is_gone_nothing_is_told(conflicts: Conflicts, recorder: Recorder) -> None:
    conflicts.tell_new([TAKEN], {})
    assert recorder.recorded == []


def test_a_whole_address_has_no_port() -> None:
    assert sentence(TAKEN._replace(key=FrontendKey(packed("fd00::9"), 0, 0))).startswith("fd00::9 is default/old's")
