"""The daemon's datapath on real maps: what holds around a switch, and what is forgotten with the programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import FROM_POD, TO_POD
from harness import Datapath as Programs
from packets import BACKEND, CLIENT, VIP
from steps import CLOSED

from kproxy_ebpf.contract.layouts import Switches
from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.daemon.datapath import Datapath
from kproxy_ebpf.daemon.options import Options
from kproxy_ebpf.datapath.attach.tc import Method
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps import pod_links
from kproxy_ebpf.datapath.maps.pod_links import LinkFacts, PodLinkTable, StandingKind
from kproxy_ebpf.datapath.maps.settings import LiveSettings

LINK = 7
ON = Switches.TC | Switches.REDIRECT


@pytest.fixture
def node(in_force: Generation, both: dict[int, Programs]) -> Iterator[Datapath]:
    """The daemon's datapath with one link, all of whose connections are recorded."""
    for programs in both.values():
        programs.clear()
    node = Datapath(in_force, Options(node_name="node1", bpffs=in_force.root.parent, attach="tcx"))
    for table in tables(node):
        table.tell({LINK: LinkFacts(b"", 0, bytes(6), 0)})
    settle(node)
    yield node
    node.close()
    for table in tables(node):
        table.tell({})
    for programs in both.values():
        programs.clear()


def tables(node: Datapath) -> Iterator[PodLinkTable]:
    for family in FAMILIES:
        with PodLinkTable(node.generation, family) as table:
            yield table


def settle(node: Datapath) -> None:
    """Settle all links, as `sync_host_flows` does where conntrack has nothing of them."""
    for table in tables(node):
        table.settle(StandingKind.UNRECORDED, table.unsettled(StandingKind.UNRECORDED))


def is_unsettled(node: Datapath) -> bool:
    unsettled = [set(table.unsettled(StandingKind.UNRECORDED)) for table in tables(node)]
    assert unsettled[0] == unsettled[1]
    return unsettled[0] == {LINK}


def test_no_link_is_settled_when_redirect_is_turned_on(node: Datapath, monkeypatch: pytest.MonkeyPatch) -> None:
    before: list[bool] = []
    write = LiveSettings.switch
    monkeypatch.setattr(LiveSettings, "switch", lambda *a: (before.append(is_unsettled(node)), write(*a)))
    node.switch(Switches.TC)
    assert not is_unsettled(node)
    node.switch(ON)
    assert before == [False, True]
    settle(node)
    node.switch(ON)
    assert not is_unsettled(node), "it was on: programs have noted what began"
    node.switch(Switches.TC)
    node.switch(ON)
    assert is_unsettled(node)


@pytest.mark.parametrize("moment", ["before the write", "after the write"])
def test_a_look_while_redirect_is_turned_on_settles_nothing(
    node: Datapath, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of conntrack may lack packets that met the switch off: links are unsettled again after them."""
    write = LiveSettings.switch
    waited: list[Switches] = []

    def write_after_a_look(live: LiveSettings, switches: Switches) -> None:
        if moment == "before the write":
            settle(node)
        write(live, switches)

    def wait() -> None:
        waited.append(node.switches)
        if moment == "after the write":
            settle(node)

    monkeypatch.setattr(LiveSettings, "switch", write_after_a_look)
    monkeypatch.setattr(pod_links, "wait_for_packets_under_way", wait)
    node.switch(ON)
    assert waited == [ON]
    assert is_unsettled(node)


def test_flows_of_before_are_forgotten(node: Datapath, both: dict[int, Programs]) -> None:
    for programs in both.values():
        programs.add_backend(1, BACKEND)
        programs.add_frontend(VIP, [1])
        programs.play(*CLOSED)
        assert programs.flow(BACKEND, CLIENT, TO_POD), "a new connection without a VIP would be taken for it"
    assert not node.flows.has_live()
    kept = node.generation.root / "kept"
    (kept / "maps").mkdir(parents=True)
    node.flows.forget()
    assert not kept.exists(), "nor do programs of before have packets of flows that only they know"
    for programs in both.values():
        assert list(programs.flows.keys()) == []
        assert programs.flow(CLIENT, VIP, FROM_POD) is None


@pytest.mark.parametrize("attached", [{}, {LINK: Method.TCX}], ids=["no link has programs", "a link has"])
async def test_a_start_on_links_without_programs_knows_no_flows(
    node: Datapath, both: dict[int, Programs], attached: dict[int, Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.attacher, "attached", lambda: attached)
    monkeypatch.setattr(node.attacher, "swap", lambda _: None)
    programs = both[4]
    programs.add_backend(1, BACKEND)
    programs.add_frontend(VIP, [1])
    programs.play(*CLOSED)
    await node.take_over()
    assert bool(list(programs.flows.keys())) == bool(attached)
