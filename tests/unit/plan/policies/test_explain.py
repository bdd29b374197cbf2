"""What is explained: who isolates, which rule admits whom, what cannot be read; and it is what the rules say."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from naive_policies import World
from policy_cases import address_of, objects_of
from policy_program import Node
from policy_worlds import QUESTIONS, STRANGERS, V4, V6, Dice, dice, local_pods

from kproxy_ebpf.model.policies import Direction, Pod, PodName, PolicyName, PortRange
from kproxy_ebpf.model.services import Protocol, packed
from kproxy_ebpf.plan.policies.explain import Admission, End, both, explain_direction, problems, verdict
from kproxy_ebpf.plan.policies.population import Population
from kproxy_ebpf.plan.policies.traits import Traits

Json = dict[str, Any]
TCP, UDP = Protocol.TCP, Protocol.UDP
A = PodName("x", "a")


def known(case: Json) -> Node:
    return Node(objects_of(case))


def end(node: Node, name: str) -> End:
    namespace, _, own = name.partition("/")
    return End(packed(address_of(name, 4)), node.snapshot.pods.get(PodName(namespace, own)))


@settings(max_examples=40, deadline=None)
@given(dice)
def test_what_is_explained_is_what_the_rules_say(dice: Dice) -> None:
    world = dice.world()
    node, naive = Node(world), World(world)
    population = Population(node.snapshot, Traits())
    for key in node.snapshot.pods:
        population.put(key)
    for obj in local_pods(naive.pods):
        pod = node.snapshot.pods[PodName(obj["metadata"]["namespace"], obj["metadata"]["name"])]
        for address in [*V4, *V6, *STRANGERS]:
            other = End(packed(address), population.owner(packed(address)))
            ingress = verdict(pod, Direction.INGRESS, other, node.snapshot).ranges
            egress = verdict(pod, Direction.EGRESS, other, node.snapshot).ranges
            for protocol, port in QUESTIONS:
                assert holds(ingress, protocol, port) == naive.may_enter(obj, address, protocol, port)
                assert holds(egress, protocol, port) == naive.may_leave(obj, address, protocol, port)


def holds(ranges: tuple[PortRange, ...] | None, protocol: str, port: int) -> bool:
    return ranges is None or any(each.protocol.name == protocol and each.first <= port <= each.last for each in ranges)


def test_each_rule_with_its_peers_and_ports() -> None:
    rule = {
        "from": [
            {"podSelector": {"matchLabels": {"pod": "b"}}},
            {"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "c"}}},
            {"ipBlock": {"cidr": "10.0.2.0/24", "except": ["10.0.2.1/32"]}},
        ],
        "ports": [{"port": "serve-80-tcp"}, {"port": "none"}, {"port": 90, "endPort": 99, "protocol": "UDP"}, {}],
    }
    spec = {"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [rule, {}], "policyTypes": ["Ingress"]}
    node = known(
        {"policies": {"x/p": spec, "x/q": {"podSelector": {}}, "x/r": {"podSelector": {"matchLabels": {"no": "one"}}}}}
    )
    pod = node.snapshot.pods[A]
    found = explain_direction(pod, Direction.INGRESS, node.snapshot)
    assert found.isolated_by == (PolicyName("x", "p"), PolicyName("x", "q"))
    first, second = found.rules
    assert [(peer.text, [str(key) for key in peer.pods]) for peer in first.peers or ()] == [
        ("pods with pod=b of the policy's namespace", ["x/b"]),
        ("pods with pod=c of all namespaces", ["x/c", "y/c", "z/c"]),
        ("10.0.2.0/24 except 10.0.2.1/32", ["y/b", "y/c"]),
    ]
    assert first.ports == (
        "serve-80-tcp/TCP, here 80",
        "none/TCP, which this pod does not have",
        "90-99/UDP",
        "all TCP",
    )
    assert (second.policy, second.place, second.peers, second.ports) == (PolicyName("x", "p"), "ingress[1]", None, None)
    assert explain_direction(pod, Direction.EGRESS, node.snapshot).isolated_by == ()


def test_a_verdict_names_the_rules_that_admit() -> None:
    spec = {
        "podSelector": {},
        "policyTypes": ["Egress"],
        "egress": [
            {"to": [{"podSelector": {}}], "ports": [{"port": 80}]},
            {"to": [{"podSelector": {"matchLabels": {"pod": "b"}}}], "ports": [{"port": "serve-81-tcp"}]},
            {"to": [{"podSelector": {"matchLabels": {"pod": "c"}}}]},
        ],
    }
    node = known({"policies": {"x/p": spec}})
    pod, policy = node.snapshot.pods[A], PolicyName("x", "p")
    eighty, both_ports = (PortRange(TCP, 80, 80),), (PortRange(TCP, 80, 81),)
    found = verdict(pod, Direction.EGRESS, end(node, "x/b"), node.snapshot)
    assert found.admissions == (
        Admission(policy, "egress[0]", eighty),
        Admission(policy, "egress[1]", (PortRange(TCP, 81, 81),)),
    )
    assert found.ranges == both_ports
    assert verdict(pod, Direction.EGRESS, end(node, "x/c"), node.snapshot).ranges is None
    assert verdict(pod, Direction.EGRESS, end(node, "y/b"), node.snapshot).ranges == ()
    assert verdict(pod, Direction.EGRESS, End(packed("192.0.2.1"), None), node.snapshot).admissions == ()
    assert verdict(pod, Direction.INGRESS, end(node, "y/b"), node.snapshot).ranges is None


def test_ports_that_both_ends_admit() -> None:
    tcp, udp = PortRange(TCP, 80, 90), PortRange(UDP, 80, 90)
    assert both(None, None) is None
    assert both(None, (tcp,)) == both((tcp,), None) == (tcp,)
    assert both((tcp,), (udp,)) == ()
    assert both((tcp, udp), (PortRange(TCP, 85, 99), PortRange(UDP, 1, 80))) == (
        PortRange(TCP, 85, 90),
        PortRange(UDP, 80, 80),
    )


def test_problems_are_what_may_concern_the_pod() -> None:
    odd = {"podSelector": {}, "ingress": [{"from": [{"fqdn": "a.b"}]}]}
    teams = {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]}]}
    named = {
        "podSelector": {},
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}}}]}],
    }

    def told(policies: Json) -> list[str]:
        node = known({"policies": policies, "namespaces": {"z": None}})
        return list(problems(node.snapshot.pods[A], node.snapshot))

    assert told({"y/p": odd, "y/q": teams, "x/p": named}) == []
    assert told({"x/p": odd}) == [
        "NetworkPolicy x/p is refused in part, the rest is in force: spec.ingress[0].from[0]: 'fqdn' is a field that"
        " is not known"
    ]
    assert told({"x/p": teams}) == ["Namespace z is not known: rules that ask for its labels admit none of its pods"]


def test_a_pod_without_addresses_is_known_by_its_labels() -> None:
    node = known({"policies": {"x/p": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}}})
    young = Pod(PodName("x", "young"))
    assert verdict(node.snapshot.pods[A], Direction.INGRESS, End(b"", young), node.snapshot).ranges is None
