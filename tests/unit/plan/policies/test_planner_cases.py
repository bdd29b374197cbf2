"""The named cases: what is expected, what the naive model says and what the tables say are the same."""

from __future__ import annotations

from typing import Any

import pytest
from naive_policies import World
from policy_cases import address_of, cases, objects_of, questions
from policy_program import Node, name_of

from kproxy_ebpf.model.policies import Direction

Json = dict[str, Any]
CASES = cases()


def reaches(node: Node, world: World, source: str, destination: str, protocol: str, port: int) -> bool:
    """By the tables of the one node that all pods are on. A pod is known by its address, as the naive model has it."""
    sender, receiver = world.pod_at(source), world.pod_at(destination)
    admits = node.program.admits
    return (sender is None or admits(name_of(sender), Direction.EGRESS, destination, protocol, port)) and (
        receiver is None or admits(name_of(receiver), Direction.INGRESS, source, protocol, port)
    )


def test_there_are_enough_cases_and_each_has_its_own_name() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES) >= 100


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_case(case: Json) -> None:
    world, node = World(objects_of(case)), Node(objects_of(case))
    for client, server, family, protocol, port, expected in questions(case):
        ends = address_of(client, family), address_of(server, family)
        asked = f"{client} > {server} {port}/{protocol} over IPv{family}"
        if "broken" not in case:
            assert (asked, world.may_pass(*ends, protocol, port)) == (asked, expected)
        assert (asked, reaches(node, world, *ends, protocol, port)) == (asked, expected)


@pytest.mark.parametrize("case", [case for case in CASES if "broken" in case], ids=lambda case: case["name"])
def test_what_cant_be_read_is_reported(case: Json) -> None:
    assert [ref.reason for ref in Node(objects_of(case)).snapshot.refused.values()] != []
