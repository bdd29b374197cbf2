"""What a plan writes: the fewest entries, numbers that stay and rest, and who is closed where there is no room."""

from __future__ import annotations

from typing import Any

from policy_cases import address_of, objects_of
from policy_program import Node, events_of, name_of

from kproxy_ebpf.model.policies import Direction, PodName
from kproxy_ebpf.model.policy_tables import NOTHING, OPEN, PolicyWrites, Subjects
from kproxy_ebpf.model.services import packed
from kproxy_ebpf.plan.policies.planner import PolicyCapacities

Json = dict[str, Any]
FROM_B: Json = {
    "podSelector": {"matchLabels": {"pod": "a"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}]}],
}
A, B = PodName("x", "a"), PodName("x", "b")


def cluster(**policies: Json) -> list[Json]:
    return objects_of({"policies": {f"x/{name}": spec for name, spec in policies.items()}})


def policy(name: str, spec: Json) -> Json:
    return {"kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "x"}, "spec": spec}


def pod(objects: list[Json], name: str) -> Json:
    return next(obj for obj in objects if obj["kind"] == "Pod" and name_of(obj) == PodName(*name.split("/")))


def planned(node: Node, *objects: Json) -> list[PolicyWrites]:
    """The steps that these changes lead to, not yet performed."""
    for obj in objects:
        for event in events_of(obj):
            node.snapshot.apply(event)
    node.planner.plan()
    return list(node.planner.steps)


def test_without_policies_there_is_nothing_but_open_pods() -> None:
    node = Node(cluster())
    assert set(node.program.subjects.values()) == {Subjects(OPEN, OPEN)}
    assert node.program.sizes() == {"grants": 0, "classes": 0, "blocks": 0, "subjects": 9}


def test_only_addresses_that_a_policy_in_force_names_have_entries() -> None:
    node = Node(cluster(p=FROM_B))
    assert sorted(node.program.classes) == sorted(packed(address_of("x/b", family)) for family in (4, 6))
    assert len(node.program.grants) == 1
    elsewhere = Node([policy("p", FROM_B), *(obj for obj in cluster() if obj["kind"] == "Namespace")])
    assert elsewhere.program.sizes() == {"grants": 0, "classes": 0, "blocks": 0, "subjects": 0}


def test_policies_of_pods_of_other_nodes_are_none_of_ours() -> None:
    node = Node(cluster(p=FROM_B), name="there")
    assert node.program.sizes() == {"grants": 0, "classes": 0, "blocks": 0, "subjects": 0}


def test_pods_with_the_same_rules_share_a_subject_whatever_their_policies_are_called() -> None:
    everybody: Json = {"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}
    objects = objects_of({"policies": {"x/p": everybody, "y/q": everybody}})
    subjects = Node(objects).program.subjects
    assert len({subjects[name_of(each)] for each in objects if each["kind"] == "Pod" and name_of(each)[0] in "xy"}) == 1


def test_a_pod_that_admits_nothing_and_one_that_admits_everything_need_no_grants() -> None:
    node = Node(
        cluster(
            deny={"podSelector": {"matchLabels": {"pod": "a"}}},
            allow={"podSelector": {"matchLabels": {"pod": "b"}}, "ingress": [{}]},
        )
    )
    assert node.program.subjects[A] == Subjects(NOTHING, OPEN)
    assert node.program.subjects[B] == Subjects(OPEN, OPEN)
    assert node.program.sizes()["grants"] == 0


def test_everybody_is_one_grant_and_not_one_for_each_class() -> None:
    node = Node(cluster(p=FROM_B, q={"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}))
    assert len(node.program.grants) == 3  # x/a: everybody, x/b; x/b and x/c: everybody


def test_a_label_of_a_client_is_one_write_an_address() -> None:
    objects = cluster(p=FROM_B)
    node = Node(objects)
    changed = pod(objects, "x/c")
    changed["metadata"]["labels"] = {"pod": "b"}
    class_ = node.program.classes[packed(address_of("x/b", 4))]
    steps = planned(node, changed)
    addresses = [packed(address_of("x/c", family)) for family in (4, 6)]
    assert steps == [PolicyWrites(classes=dict.fromkeys(addresses, class_))]


def test_what_changes_nothing_writes_nothing() -> None:
    objects = cluster(p=FROM_B)
    node = Node(objects)
    changed = pod(objects, "z/c")
    changed["metadata"]["labels"] = {"pod": "c", "other": "label"}
    assert planned(node, changed) == []
    assert planned(node, policy("p", {**FROM_B, "policyTypes": ["Ingress"]})) == []


def test_a_label_of_a_namespace_leads_its_pods_to_another_class_and_back() -> None:
    spec: Json = {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]}]}
    node = Node(cluster(p=spec))
    before = node.program.sizes()
    labelled: Json = {"kind": "Namespace", "metadata": {"name": "y", "labels": {"team": "a"}}}
    node.put(labelled)
    addresses = {packed(address_of(f"y/{name}", family)) for name in "abc" for family in (4, 6)}
    assert node.program.classes.keys() == addresses
    assert node.program.admits(A, Direction.INGRESS, address_of("y/a", 4), "TCP", 80)
    node.remove(labelled)
    assert not node.program.admits(A, Direction.INGRESS, address_of("y/a", 4), "TCP", 80)
    assert node.program.sizes() == before


def test_a_block_that_comes_later_holds_pods_that_have_a_class() -> None:
    node = Node(cluster(p=FROM_B))
    block = {"ipBlock": {"cidr": f"{address_of('x/b', 4)}/32"}}
    later = policy("q", {"podSelector": {"matchLabels": {"pod": "c"}}, "ingress": [{"from": [block]}]})
    node.put(later)
    assert node.program.admits(PodName("x", "c"), Direction.INGRESS, address_of("x/b", 4), "TCP", 80)
    assert not node.program.admits(PodName("x", "c"), Direction.INGRESS, address_of("x/b", 6), "TCP", 80)
    node.remove(later)
    assert node.program.sizes() == Node(cluster(p=FROM_B)).program.sizes()


def test_a_policy_that_changes_gives_its_pods_another_subject_and_takes_the_old_one_back() -> None:
    node = Node(cluster(p=FROM_B))
    old = node.program.subjects[A].ingress
    widen, narrow = planned(
        node, policy("p", {**FROM_B, "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "c"}}}]}]})
    )
    new = widen.subjects[A].ingress
    assert new != old
    assert {key.subject for key in widen.grants} == {new}
    assert widen.classes.keys() == {packed(address_of("x/c", family)) for family in (4, 6)}
    assert not widen.removed_grants
    assert narrow.removed_classes == {packed(address_of("x/b", family)) for family in (4, 6)}
    assert {key.subject for key in narrow.removed_grants} == {old}


def test_numbers_rest_before_they_are_used_again() -> None:
    node = Node(cluster(p=FROM_B))
    used = set()
    for number in range(4):
        used.add(node.program.subjects[A].ingress)
        planned(node, policy("p", {**FROM_B, "ingress": [{"ports": [{"port": 80 + number}]}]}))
        for step in node.planner.steps:
            node.program.apply(step)
        node.planner.commit()
    used.add(node.program.subjects[A].ingress)
    assert len(used) == 5
    node.now += 10
    node.put(policy("p", FROM_B))
    assert node.program.subjects[A].ingress in used


def test_a_step_that_failed_stays_and_nothing_is_used_again_before_it_is_performed() -> None:
    node = Node(cluster(p=FROM_B))
    old = node.program.subjects[A].ingress
    first = planned(node, policy("p", {**FROM_B, "ingress": [{"ports": [{"port": 80}]}]}))
    node.now += 100
    steps = planned(
        node, policy("q", {"podSelector": {"matchLabels": {"pod": "b"}}, "ingress": [{"ports": [{"port": 81}]}]})
    )
    assert steps[: len(first)] == first
    assert old not in {key.subject for step in steps for key in step.grants}


def test_a_subject_without_room_is_closed_and_named() -> None:
    objects = cluster(
        p=FROM_B, q={"podSelector": {"matchLabels": {"pod": "b"}}, "ingress": [{"ports": [{"port": 81}]}]}
    )
    node = Node(objects, PolicyCapacities(grants=1))
    closed = dict(node.planner.closed)
    assert list(closed.values()) == ["grants"]
    assert node.program.subjects[next(iter(closed))].ingress == NOTHING
    assert node.planner.full == {"grants"}
    for obj in objects:
        if obj["kind"] == "NetworkPolicy" and obj["metadata"]["name"] != ("p" if A in closed else "q"):
            node.remove(obj)
    assert (node.planner.closed, node.planner.full) == ({}, set())


def test_more_ranges_than_a_set_holds_close_the_pod() -> None:
    ports = [{"port": 2 * number + 1} for number in range(65)]
    assert not Node(cluster(p={"podSelector": {}, "ingress": [{"ports": ports[:64]}]})).planner.closed
    closed = Node(cluster(p={"podSelector": {}, "ingress": [{"ports": ports}]})).planner.closed
    assert dict(closed) == {PodName("x", name): "port_sets" for name in "abc"}
