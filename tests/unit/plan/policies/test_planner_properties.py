"""Random clusters: the tables say what the naive model says, at every write, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from naive_policies import World
from policy_program import Node, ref_of
from policy_worlds import Dice, answers, dice, naive_answers

from kproxy_ebpf.plan.policies.planner import PolicyCapacities

Json = dict[str, Any]
EXAMPLES = settings(max_examples=40, deadline=None)


@EXAMPLES
@given(dice)
def test_the_tables_say_what_the_rules_say(dice: Dice) -> None:
    world = dice.world()
    assert answers(Node(world), World(world).pods) == naive_answers(World(world))


@EXAMPLES
@given(dice, st.lists(st.booleans(), min_size=4, max_size=8))
def test_changes_one_by_one_lead_to_the_same_as_a_start(dice: Dice, removals: list[bool]) -> None:
    """And leave nothing behind: as many entries as a planner has that never saw anything else."""
    world = dice.world()
    node = Node(world)
    known = {ref_of(obj): obj for obj in world}
    for is_removed in removals:
        obj = dice.object_()
        if is_removed:
            known.pop(ref_of(obj), None)
            node.remove(obj)
        else:
            known[ref_of(obj)] = obj
            node.put(obj)
        current = World(known.values())
        assert answers(node, current.pods) == naive_answers(current)
    fresh = Node(known.values())
    assert node.program.sizes() == fresh.program.sizes()
    assert node.planner.occupancy() == fresh.planner.occupancy()


@EXAMPLES
@given(dice, st.booleans())
def test_every_write_leads_from_before_to_after(dice: Dice, is_removed: bool) -> None:
    """Of each question the answer is the one of before or the one of after, whatever has been written by then."""
    world, obj = dice.world(), dice.object_()
    node = Node(world)
    known = {ref_of(each): each for each in world}
    before = answers(node, World(world).pods)
    known.pop(ref_of(obj), None) if is_removed else known.update({ref_of(obj): obj})
    after = naive_answers(World(known.values()))
    staying = before.keys() & after.keys()

    def check() -> None:
        now = answers(node, World(known.values()).pods)
        assert {key for key in staying if now[key] not in (before[key], after[key])} == set()

    node.remove(obj, check) if is_removed else node.put(obj, after_each=check)
    assert answers(node, World(known.values()).pods) == after


small = st.builds(
    PolicyCapacities,
    classes=st.integers(1, 4),
    blocks=st.integers(1, 4),
    grants=st.integers(1, 12),
    port_sets=st.integers(2, 4),
    subjects=st.integers(4, 6),
    class_numbers=st.integers(2, 4),
)


@EXAMPLES
@given(dice, small)
def test_full_tables_admit_less_and_say_so(dice: Dice, capacities: PolicyCapacities) -> None:
    """And all is right as soon as there is room."""
    world = dice.world()
    node = Node(world, capacities)
    right, now = naive_answers(World(world)), answers(node, World(world).pods)
    wrong = {key for key, admits in now.items() if admits != right[key]}
    assert {key for key in wrong if now[key]} == set()
    assert node.planner.full or not wrong
    assert all(used <= limit for used, limit in node.planner.occupancy().values())
    gone = [obj for obj in world if obj["kind"] == "NetworkPolicy"]
    for obj in gone:
        node.remove(obj)
    node.settle()
    assert (node.planner.full, node.planner.closed) == (set(), {})
    assert all(answers(node, World(world).pods).values())
    one = dice.policy("one")
    node.put(one)
    rest = [obj for obj in world if obj["kind"] != "NetworkPolicy"]
    if not node.planner.full:
        assert answers(node, World(world).pods) == naive_answers(World([*rest, one]))


@EXAMPLES
@given(dice, st.integers(0, 2**32 - 1))
def test_what_cant_be_read_admits_never_more(dice: Dice, seed: int) -> None:
    """A part of a policy is replaced by something that nobody can read, or gets a field that nobody knows."""
    world = dice.world()
    broken = spoilt(world, Random(seed))
    node = Node(broken)
    before, after = answers(Node(world), World(world).pods), answers(node, World(world).pods)
    assert {key for key, admits in after.items() if admits and not before[key]} == set()
    assert bool(node.snapshot.refused) == (broken != world)


def spoilt(world: list[Json], random: Random) -> list[Json]:
    world = deepcopy(world)
    places = [place for obj in world if obj["kind"] == "NetworkPolicy" for place in parts(obj["spec"])]
    if places:
        holder, key = random.choice(places)
        if isinstance(holder[key], dict) and random.randrange(2):
            holder[key]["unless"] = "night"
        else:
            holder[key] = random.choice(["x", 7, True, {"a": "b"}, [["c"]]])
    return world


def parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything within a spec that stands for a rule, a peer, a port, a selector or a list of them."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            if key not in ("matchLabels", "labels", "key", "operator", "values", "cidr", "protocol", "port", "endPort"):
                yield value, key
            if key != "matchLabels":
                yield from parts(value[key])
