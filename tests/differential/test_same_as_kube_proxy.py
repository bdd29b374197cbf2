"""A pod behind us sees what a pod behind the real kube-proxy sees: the same endpoints, the same refusal or silence, and
at the backend the same source address, or the pod's own where kube-proxy masquerades.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cases import CASES, HERE, OTHER_ZONE, ZONE, Ask, Case
from contenders import OUR_MODES, SYNC_SECONDS, Contenders, Seen

from kproxy_ebpf.lab.control_plane import object_path
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

QUESTIONS = [
    pytest.param(case, question, id=f"{case.name}-{question.via}-{question.port}")
    for case in CASES
    for question in case.asks
]


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize(("case", "question"), QUESTIONS)
def test_same_as_kube_proxy(world: Contenders, case: Case, question: Ask, family: int, protocol: Protocol) -> None:
    seen = world.observe_all(world.made[case.name], question, family, protocol)
    for name, our_mode in OUR_MODES.items():
        for mode in question.alike:
            compare(case, question, seen[name], seen[mode], f"{our_mode} and {mode}")


def compare(case: Case, question: Ask, ours: Seen, theirs: Seen, modes: str) -> None:
    if case.spec.get("sessionAffinity") == "ClientIP":
        assert len(ours.endpoints) == len(theirs.endpoints) == 1, f"{modes}: one client, one endpoint"
        return
    assert ours.endpoints == theirs.endpoints, modes
    if question.source and theirs.source:
        assert (ours.source, theirs.source) == (question.source, "node"), f"{modes}: better here, or no longer?"
    else:
        assert ours.source == theirs.source, modes


@pytest.fixture
def in_the_other_zone(world: Contenders) -> Iterator[None]:
    def move(zone: str) -> None:
        labels = {"topology.kubernetes.io/zone": zone}
        world.control.api("PATCH", object_path("Node", HERE), {"metadata": {"labels": labels}})

    move(OTHER_ZONE)
    yield
    move(ZONE)


@pytest.mark.usefixtures("in_the_other_zone")
def test_a_node_that_changes_its_zone_changes_its_endpoints(world: Contenders) -> None:
    def seen() -> dict[str, object]:
        return {
            name: each.endpoints
            for name, each in world.observe_all(world.made["zone-hints"], Ask("cluster"), 4, Protocol.TCP).items()
        }

    there = frozenset({"e2", "e3", "e4"})  # of four, all have hints, and these name that zone
    until(lambda: set(seen().values()) == {there}, "all contenders to see the other zone", seconds=SYNC_SECONDS)
