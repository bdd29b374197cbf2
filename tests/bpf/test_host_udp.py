"""UDP flows of the host are imported, whatever is scanned meanwhile; those that lead nowhere are forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from harness import FROM_POD, Datapath, Meanwhile, Step
from packets import BACKEND, BACKEND_B, CLIENT, HOST_MAC, OUTSIDE, VIP, VIP_B, Endpoint, udp

from kproxy_ebpf.contract.layouts import Direction, Switches, Verdict
from kproxy_ebpf.daemon.flows import sweep_and_settle
from kproxy_ebpf.datapath.flows.host_udp import flows_of_host, forget_unserved, import_flows
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.pod_links import LinkFacts, PodLinkTable, StandingKind
from kproxy_ebpf.datapath.maps.service_tables import ServiceMaps
from kproxy_ebpf.linux.nf_conntrack import Tracked
from kproxy_ebpf.model.flows import FlowRecord, FlowTuple
from kproxy_ebpf.model.service_tables import TableContents

LO = 1  # where test runs come from
STAYS, BALANCES = Switches.TC | Switches.UDP_STAYS, Switches.TC


def tuple_(family: int, source: Endpoint, destination: Endpoint) -> FlowTuple:
    addresses = source.host.packed(family), destination.host.packed(family)
    return FlowTuple(addresses[0], source.port, addresses[1], destination.port, 17, Direction.FROM_POD)


def tracked(
    family: int,
    server: Endpoint = BACKEND,
    client: Endpoint = CLIENT,
    vip: Endpoint = VIP,
    back: Endpoint | None = None,
) -> Tracked:
    """What conntrack has of a datagram to `vip`; `server` answers to `back`, by default the client."""
    return Tracked(tuple_(family, client, vip), tuple_(family, server, back or client))


@pytest.fixture
def contents(datapath: Datapath, generation: Generation) -> TableContents:
    maps = ServiceMaps(generation, datapath.family)
    try:
        return maps.read()
    finally:
        maps.close()


@pytest.fixture
def settled_link(datapath: Datapath, generation: Generation) -> Iterator[PodLinkTable]:
    """The client's link, which has no flows and is known to have none."""
    with PodLinkTable(generation, datapath.family) as table:
        table.tell({LO: LinkFacts(CLIENT.host.packed(datapath.family), 0, bytes.fromhex(HOST_MAC.replace(":", "")), 0)})
        table.settle(StandingKind.FLOWS, table.unsettled(StandingKind.FLOWS))
        yield table
        table.tell({})


def said(client: Endpoint = CLIENT, to: Endpoint = BACKEND, verdict: Verdict = Verdict.TRANSLATED) -> Step:
    return Step(FROM_POD, udp(client, VIP), verdict, udp(client, to))


def test_only_what_is_led_to_a_backend_is_taken_over(datapath: Datapath, contents: TableContents) -> None:
    family = datapath.family
    untranslated = tracked(family, server=VIP)
    masqueraded = tracked(family, server=VIP, back=OUTSIDE)
    stranger = tracked(family, vip=OUTSIDE)
    assert not list(flows_of_host(family, contents, [untranslated, masqueraded, stranger]))
    masqueraded_too = tracked(family, back=OUTSIDE)
    flows = list(flows_of_host(family, contents, [tracked(family), masqueraded_too]))
    assert [flow.to.destination for flow in flows] == [BACKEND.host.packed(family)] * 2


def test_flows_are_found_though_the_link_was_settled_while_they_were_written(
    datapath: Datapath, generation: Generation, contents: TableContents, settled_link: PodLinkTable
) -> None:
    def flows() -> Iterator[FlowRecord]:
        settled_link.unsettle(StandingKind.FLOWS)  # as a flow that has ended leaves it
        sweep_and_settle(generation, datapath.family)
        assert not settled_link.unsettled(StandingKind.FLOWS), "nothing was there yet"
        yield from flows_of_host(datapath.family, contents, [tracked(datapath.family, BACKEND_B)])

    datapath.add_backend(2, BACKEND_B)
    assert import_flows(generation, datapath.family, flows()) == 1
    datapath.play(said(to=BACKEND_B))


def test_a_sweep_that_began_before_settles_nothing(
    datapath: Datapath, generation: Generation, contents: TableContents, settled_link: PodLinkTable
) -> None:
    settled_link.unsettle(StandingKind.FLOWS)
    looked = settled_link.unsettled(StandingKind.FLOWS)
    import_flows(generation, datapath.family, flows_of_host(datapath.family, contents, [tracked(datapath.family)]))
    settled_link.settle(StandingKind.FLOWS, looked)
    datapath.play(said())


def test_what_stayed_with_the_host_is_balanced_unless_the_host_has_it(
    datapath: Datapath, generation: Generation, contents: TableContents
) -> None:
    family = datapath.family
    ports = range(41001, 41005)
    has_it, untranslated, masqueraded, unknown = (CLIENT.on(port) for port in ports)
    stays = [said(each, VIP) for each in (has_it, untranslated, masqueraded, unknown)]
    connections = [
        tracked(family, client=has_it),
        tracked(family, VIP, untranslated),
        tracked(family, VIP, masqueraded, back=OUTSIDE),
    ]
    datapath.play(
        said(verdict=Verdict.BALANCED),
        Meanwhile(lambda here: here.set_live(switches=STAYS)),
        *stays,
        Meanwhile(lambda here: here.set_live(switches=BALANCES)),
        *stays,
    )
    assert forget_unserved(generation, family, contents.frontends, connections) == 3
    again = [said(each, verdict=Verdict.BALANCED) for each in (untranslated, masqueraded, unknown)]
    datapath.play(said(), stays[0], *again)
    assert datapath.flow(VIP, unknown, Direction.TO_POD, "udp") is None, "of the entry for answers nothing is left"
    assert forget_unserved(generation, family, contents.frontends, connections) == 0


def test_flows_that_are_somebodys_are_not_let_go_of(
    datapath: Datapath, generation: Generation, contents: TableContents
) -> None:
    """One imported whose backend is not known, one of no Service that has another's answers, one of TCP."""
    family = datapath.family
    other = CLIENT.on(41001)
    (unknown,) = flows_of_host(family, contents, [tracked(family, OUTSIDE, other)])
    assert unknown.backend_id == 0
    import_flows(generation, family, [unknown])
    datapath.play(said(verdict=Verdict.BALANCED))
    assert datapath.see(FROM_POD, udp(CLIENT, BACKEND).frame(family))[0] == Verdict.TRANSLATED
    datapath.write_flow((CLIENT, VIP_B, FROM_POD), (CLIENT, VIP_B, Direction.TO_POD), state=1)
    before = datapath.flows.count()
    assert forget_unserved(generation, family, contents.frontends, []) == 0
    assert datapath.flows.count() == before


def test_a_flow_whose_port_is_used_again_meanwhile_stays(
    datapath: Datapath, generation: Generation, contents: TableContents, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = datapath.family
    datapath.play(said(verdict=Verdict.BALANCED))
    stale = replace(next(flows_of_host(family, contents, [tracked(family)])), backend_id=0)
    stale = replace(stale, to=replace(stale.to, destination=VIP.host.packed(family), destination_port=VIP.port))
    monkeypatch.setattr("kproxy_ebpf.datapath.flows.host_udp.live_connections", lambda *_: [stale])
    forget_unserved(generation, family, contents.frontends, [])
    datapath.play(said())
