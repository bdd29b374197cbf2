"""A trace tells what the programs would do, and leaves the maps as they were."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
from harness import FROM_POD, PROTOCOLS, TO_POD, Datapath, now_seconds
from packets import BACKEND, BACKEND_B, CLIENT, OUTSIDE, VIP, VIP_B, Endpoint, tcp

from kproxy_ebpf.contract.layouts import Affinity, BackendState, FrontendFlags, Verdict
from kproxy_ebpf.datapath.frames import Refusal
from kproxy_ebpf.datapath.trace import Trace, Tracer
from kproxy_ebpf.errors import UsageError
from kproxy_ebpf.model.flows import FlowTuple

ANY_PORT = CLIENT.on(0)


@contextmanager
def nothing_left(datapath: Datapath):
    """The maps hold the same afterwards."""
    before = contents(datapath)
    yield
    assert contents(datapath) == before


def contents(datapath: Datapath):
    tables = (datapath.flows, datapath.affinity, datapath.frontends, datapath.source_ranges)
    return [dict(table.items()) for table in tables]


@pytest.fixture
def tracer(generation, datapath):
    with Tracer(generation, datapath.family) as tracer:
        yield tracer


@pytest.fixture
def run(tracer, datapath):
    """Trace one packet, and check that nothing stays."""

    def run(destination: Endpoint, protocol: str = "tcp", source: Endpoint = ANY_PORT) -> Trace:
        with nothing_left(datapath):
            return tracer.trace(packet(datapath, source, destination, protocol))

    return run


def packet(datapath: Datapath, source: Endpoint, destination: Endpoint, protocol: str = "tcp") -> FlowTuple:
    ends = source.host.packed(datapath.family), source.port, destination.host.packed(datapath.family), destination.port
    return FlowTuple(*ends, PROTOCOLS[protocol], FROM_POD)


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_a_balanced_packet(run, datapath, protocol):
    trace = run(VIP, protocol)
    assert trace.verdict is Verdict.BALANCED
    assert trace.becomes == replace(
        trace.packet, destination=BACKEND.host.packed(datapath.family), destination_port=BACKEND.port
    )
    assert trace.packet.source_port >= 61000
    assert (trace.backend_id, trace.backend.port, trace.answer, trace.hairpin) == (1, BACKEND.port, None, False)
    assert [choice.port for choice in trace.choices] == [BACKEND.port]


def test_an_address_that_is_no_vip(run):
    trace = run(OUTSIDE)
    assert (trace.verdict, trace.frontend, trace.becomes, trace.answer) == (Verdict.UNTOUCHED, None, None, None)


@pytest.mark.parametrize(
    ("protocol", "answer"), [("tcp", Refusal.RESET), ("udp", Refusal.UNREACHABLE), ("sctp", Refusal.UNREACHABLE)]
)
def test_refusals_and_their_answers(run, datapath, protocol, answer):
    datapath.add_frontend(VIP.on(81), [], protocol)
    for port, verdict in ((81, Verdict.REJECTED_NO_BACKEND), (82, Verdict.REJECTED_UNDEFINED_PORT)):
        trace = run(VIP.on(port), protocol)
        assert (trace.verdict, trace.answer, trace.becomes) == (verdict, answer, None)
        assert trace.is_vip_only == (port == 82)


def test_drops(run, datapath):
    datapath.add_frontend(VIP.on(81), [], flags=FrontendFlags.DROP)
    datapath.add_frontend(VIP.on(82), [1], flags=FrontendFlags.SOURCE_RANGES, service_id=7)
    assert run(VIP.on(81)).verdict is Verdict.DROPPED_TRAFFIC_POLICY
    assert run(VIP.on(82)).verdict is Verdict.DROPPED_SOURCE_RANGE
    datapath.admit(7, CLIENT.host, 16)
    assert run(VIP.on(82)).verdict is Verdict.BALANCED


def test_a_drop_that_only_its_counter_names(run, datapath):
    datapath.set_backend(1, state=BackendState.FREE)
    trace = run(VIP)
    assert (trace.verdict, trace.backend) == (Verdict.DROPPED_INTERNAL, None)


def test_a_pod_that_reaches_itself(run, datapath):
    trace = run(VIP, source=BACKEND.on(0))
    assert (trace.verdict, trace.hairpin, trace.answer) == (Verdict.BALANCED, True, None)
    assert trace.becomes.source == VIP.host.packed(datapath.family)


def test_affinity_is_followed_and_put_back(run, datapath):
    datapath.add_backend(2, BACKEND_B)
    datapath.add_frontend(VIP, [1, 2], affinity_seconds=60)
    first = run(VIP)  # checks that no entry stays
    assert not first.was_affine
    key = CLIENT.host.packed(datapath.family) + (1).to_bytes(4, "little")
    datapath.affinity.update(key, bytes(Affinity(backend_id=2, epoch=1, last_used_seconds=now_seconds() - 30)))
    for _ in range(10):
        trace = run(VIP)
        assert (trace.backend_id, trace.was_affine) == (2, True)


def test_flows_of_others_are_not_disturbed(tracer, datapath):
    datapath.run(FROM_POD, tcp(CLIENT, VIP, "S").frame(datapath.family))
    before = contents(datapath)
    for _ in range(20):
        tracer.trace(packet(datapath, ANY_PORT, VIP))
        tracer.trace(packet(datapath, ANY_PORT, VIP_B))
    assert contents(datapath) == before
    assert datapath.flow(BACKEND, CLIENT, TO_POD)


@pytest.mark.parametrize("vip", [VIP, VIP_B], ids=["its own tuple", "its reply's tuple"])
def test_a_source_port_in_use_is_refused(tracer, datapath, vip):
    datapath.run(FROM_POD, tcp(CLIENT, VIP, "S").frame(datapath.family))
    with pytest.raises(UsageError, match="40000 belongs to a connection"), nothing_left(datapath):
        tracer.trace(packet(datapath, CLIENT, vip))


def test_a_source_port_of_ones_own(run):
    assert run(VIP, source=CLIENT).packet.source_port == CLIENT.port


def test_one_packet_is_counted(run, datapath):
    before = datapath.count()
    run(VIP)
    after = datapath.count()
    assert {verdict: after[verdict] - before[verdict] for verdict in after if after[verdict] != before[verdict]} == {
        Verdict.BALANCED: 1
    }


def test_other_traffic_counted_meanwhile_does_not_mislead(tracer, datapath, monkeypatch):
    """The verdict told is the packet's own, whatever other packets add to the counters meanwhile."""
    dropped, run = tcp(CLIENT.on(50000), VIP.on(81), "S").frame(datapath.family), tracer._program.test_run
    datapath.add_frontend(VIP.on(81), [], flags=FrontendFlags.DROP)

    def with_others(frame: bytes):
        for _ in range(3):
            datapath.run(FROM_POD, dropped)
        return run(frame)

    monkeypatch.setattr(tracer._program, "test_run", with_others)
    assert tracer.trace(packet(datapath, ANY_PORT, VIP)).verdict is Verdict.BALANCED
    assert tracer.trace(packet(datapath, ANY_PORT, OUTSIDE)).verdict is Verdict.UNTOUCHED


def test_a_frontend_that_changes_meanwhile_is_traced_anew(tracer, datapath, monkeypatch):
    run = tracer._program.test_run
    changes = iter([lambda: datapath.add_frontend(VIP, [])])

    def changing(frame: bytes):
        next(changes, lambda: None)()
        return run(frame)

    monkeypatch.setattr(tracer._program, "test_run", changing)
    trace = tracer.trace(packet(datapath, ANY_PORT, VIP))
    assert trace.verdict is Verdict.REJECTED_NO_BACKEND
    assert trace.choices == ()
