"""What is read of a NetworkPolicy, and that what can't be read never admits anything."""

from __future__ import annotations

import json

import pytest
from fake_api import v4, v6

from kproxy_ebpf.kube.addresses import PartialRefusal, Refusal
from kproxy_ebpf.kube.kinds.network_policy import NETWORK_POLICY
from kproxy_ebpf.model.policies import (
    EVERYTHING,
    Direction,
    IpBlock,
    Operator,
    PodPeer,
    PolicyName,
    PortName,
    PortRange,
    Prefix,
    Requirement,
    Rule,
    Selector,
)
from kproxy_ebpf.model.services import Protocol
from kproxy_ebpf.model.snapshot import Kind, ObjectRef, Refused, Unreadable, Upserted

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
DB = Selector((Requirement("role", Operator.IN, frozenset({"db"})),))
GOOD_PEER = {"podSelector": {}}
GOOD_PORT = {"port": 80}
SAME_NAMESPACE = PodPeer(None)
HTTP = PortRange(Protocol.TCP, 80, 80)


def policy(**spec):
    return {"metadata": {"name": "p", "namespace": "shop"}, "spec": spec}


def parse(**spec):
    return NETWORK_POLICY.parse(policy(**spec))


def rest(**spec):
    """What is left of a policy of which not everything can be read, and why."""
    with pytest.raises(PartialRefusal) as caught:
        parse(**spec)
    return caught.value.rest, str(caught.value)


def test_the_example_of_the_documentation():
    parsed = parse(
        podSelector={"matchLabels": {"role": "db"}},
        policyTypes=["Ingress", "Egress"],
        ingress=[
            {
                "from": [
                    {"ipBlock": {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}},
                    {"namespaceSelector": {"matchLabels": {"project": "myproject"}}},
                    {"podSelector": {"matchLabels": {"role": "frontend"}}},
                ],
                "ports": [{"protocol": "TCP", "port": 6379}],
            }
        ],
        egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/24"}}], "ports": [{"protocol": "TCP", "port": 5978}]}],
    )
    project = Selector((Requirement("project", Operator.IN, frozenset({"myproject"})),))
    frontend = Selector((Requirement("role", Operator.IN, frozenset({"frontend"})),))
    block = IpBlock(Prefix(v4("172.17.0.0"), 16), (Prefix(v4("172.17.1.0"), 24),))
    peers = (block, PodPeer(project), PodPeer(None, frontend))
    assert parsed.key == PolicyName("shop", "p")
    assert parsed.pods == DB
    assert parsed.rules == {
        INGRESS: (Rule(peers, (PortRange(Protocol.TCP, 6379, 6379),), "ingress[0]"),),
        EGRESS: (Rule((IpBlock(Prefix(v4("10.0.0.0"), 24)),), (PortRange(Protocol.TCP, 5978, 5978),), "egress[0]"),),
    }


@pytest.mark.parametrize(
    ("spec", "directions"),
    [
        ({}, {INGRESS}),
        ({"policyTypes": None}, {INGRESS}),
        ({"policyTypes": []}, {INGRESS}),
        ({"egress": []}, {INGRESS}),
        ({"egress": [{}]}, {INGRESS, EGRESS}),
        ({"ingress": [{}], "egress": [{}]}, {INGRESS, EGRESS}),
        ({"policyTypes": ["Egress"], "ingress": [{}]}, {EGRESS}),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, {INGRESS}),
        ({"policyTypes": ["Egress", "Ingress"]}, {INGRESS, EGRESS}),
    ],
)
def test_policy_types(spec, directions):
    assert parse(**spec).rules.keys() == directions


def test_rules_of_a_direction_that_is_no_policy_type_have_no_effect():
    assert parse(policyTypes=["Egress"], ingress=[{}]).rules == {EGRESS: ()}


def test_absent_and_empty():
    everything = (Rule(None, None, "ingress[0]"),)
    assert parse().rules == parse(ingress=[]).rules == parse(ingress=None).rules == {INGRESS: ()}
    for rule in ({}, {"from": []}, {"from": None, "ports": None}, {"ports": []}):
        assert parse(ingress=[rule]).rules == {INGRESS: everything}


def test_an_absent_spec_isolates_the_namespace():
    for obj in ({}, {"spec": None}, {"spec": {}}):
        parsed = NETWORK_POLICY.parse({"metadata": {"name": "p"}, **obj})
        assert (parsed.key, parsed.pods, parsed.rules) == (PolicyName("default", "p"), EVERYTHING, {INGRESS: ()})


def test_selectors():
    expressions = [
        {"key": "a", "operator": "In", "values": ["x", "y"]},
        {"key": "b", "operator": "NotIn", "values": ["x"]},
        {"key": "c", "operator": "Exists"},
        {"key": "d", "operator": "DoesNotExist", "values": None},
    ]
    parsed = parse(podSelector={"matchLabels": {"z": "1"}, "matchExpressions": expressions})
    assert str(parsed.pods) == "a in (x, y), b not in (x), c, !d, z=1"
    assert parsed.pods.matches({"a": "y", "c": "", "z": "1"})
    for change in ({"a": "z"}, {"b": "x"}, {"d": ""}, {"z": "2"}):
        assert not parsed.pods.matches({"a": "y", "c": "", "z": "1", **change})


def test_peers():
    both = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "db"}}}
    parsed = parse(ingress=[{"from": [both, {"namespaceSelector": {}}, {"podSelector": {}}]}])
    assert parsed.rules[INGRESS][0].peers == (PodPeer(EVERYTHING, DB), PodPeer(EVERYTHING), PodPeer(None))


def test_blocks_lose_host_bits_and_zeros():
    parsed = parse(
        ingress=[{"from": [{"ipBlock": {"cidr": cidr}} for cidr in ("10.1.2.3/8", "010.0.0.0/08", "fd00::1/64")]}]
    )
    ten = IpBlock(Prefix(v4("10.0.0.0"), 8))
    assert parsed.rules[INGRESS][0].peers == (ten, ten, IpBlock(Prefix(v6("fd00::"), 64)))


def test_ports():
    ports = [
        {},
        {"protocol": "SCTP"},
        {"port": 80},
        {"port": 80, "endPort": 90, "protocol": "UDP"},
        {"port": "http"},
        {"port": "dns", "protocol": "UDP"},
    ]
    assert parse(ingress=[{"ports": ports}]).rules[INGRESS][0].ports == (
        PortRange(Protocol.TCP, 0, 65535),
        PortRange(Protocol.SCTP, 0, 65535),
        PortRange(Protocol.TCP, 80, 80),
        PortRange(Protocol.UDP, 80, 90),
        PortName(Protocol.TCP, "http"),
        PortName(Protocol.UDP, "dns"),
    )


@pytest.mark.parametrize(
    ("peer", "why"),
    [
        ({}, "spec.ingress[0].from[0]: neither podSelector nor namespaceSelector nor ipBlock is there"),
        ({"fqdn": "a.b"}, "spec.ingress[0].from[0]: 'fqdn' is a field that is not known"),
        ({"podSelector": {}, "fqdn": "a.b"}, "spec.ingress[0].from[0]: 'fqdn' is a field that is not known"),
        ({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}, "ipBlock stands beside a selector"),
        ({"podSelector": []}, "spec.ingress[0].from[0].podSelector: a list should be an object"),
        ({"podSelector": {"matchLabels": {"a": 1}}}, "podSelector.matchLabels.a: should be a valid string, not 1"),
        ({"podSelector": {"matchExpressions": {}}}, "podSelector.matchExpressions: should be a list, not an object"),
        ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}, "'Gt' is not In"),
        ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}, "values: In needs some"),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
            "Exists has none",
        ),
        ({"namespaceSelector": {"matchFields": {}}}, "'matchFields' is a field that is not known"),
        ({"ipBlock": {}}, "spec.ingress[0].from[0].ipBlock.cidr: field required"),
        ({"ipBlock": {"cidr": "10.0.0.0"}}, "'10.0.0.0' is not a CIDR"),
        ({"ipBlock": {"cidr": "10.0.0.0/33"}}, "'10.0.0.0/33' is not a CIDR"),
        ({"ipBlock": {"cidr": "::ffff:10.0.0.0/104"}}, "is an IPv4 range in IPv6 form"),
        ({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x"]}}, "ipBlock.except[0]: 'x' is not a CIDR"),
        ({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}, "'11.0.0.0/16' is no part of 10.0.0.0/8"),
        ({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}, "'10.0.0.0/8' is no part of 10.0.0.0/8"),
        ({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/16"]}}, "'fd00::/16' is no part of 10.0.0.0/8"),
        ("pods", "spec.ingress[0].from[0]: 'pods' should be an object"),
        (None, "spec.ingress[0].from[0]: None should be an object"),
    ],
)
def test_a_peer_that_cant_be_read_admits_nobody(peer, why):
    left, reason = rest(ingress=[{"from": [peer, GOOD_PEER], "ports": [GOOD_PORT]}, {"from": [peer]}])
    assert left.rules == {INGRESS: (Rule((SAME_NAMESPACE,), (HTTP,), "ingress[0]"), Rule((), None, "ingress[1]"))}
    assert why in reason
    assert reason.endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("port", "why"),
    [
        ({"port": 0}, "spec.ingress[0].ports[0].port"),
        ({"port": 70000}, "spec.ingress[0].ports[0].port"),
        ({"port": True}, "spec.ingress[0].ports[0].port"),
        ({"port": "80"}, "'80' is no name of a port"),
        ({"port": ""}, "'' is no name of a port"),
        ({"port": "a--b"}, "'a--b' is no name of a port"),
        ({"port": "-a"}, "'-a' is no name of a port"),
        ({"port": "Http"}, "'Http' is no name of a port"),
        ({"port": "much-longer-than-fifteen"}, "is no name of a port"),
        ({"port": 80, "endPort": 79}, "spec.ingress[0].ports[0].endPort: 79 is less than port 80"),
        ({"port": "http", "endPort": 90}, "spec.ingress[0].ports[0].endPort: 90 needs a port that is a number"),
        ({"endPort": 90}, "spec.ingress[0].ports[0].endPort: 90 needs a port that is a number"),
        ({"protocol": "ICMP"}, "spec.ingress[0].ports[0].protocol: should be 'TCP', 'UDP' or 'SCTP', not 'ICMP'"),
        ({"port": 80, "icmpType": 8}, "'icmpType' is a field that is not known"),
        (80, "spec.ingress[0].ports[0]: 80 should be an object"),
    ],
)
def test_a_port_that_cant_be_read_admits_nothing(port, why):
    left, reason = rest(ingress=[{"ports": [port, GOOD_PORT]}, {"ports": [port]}])
    assert left.rules == {INGRESS: (Rule(None, (HTTP,), "ingress[0]"), Rule(None, (), "ingress[1]"))}
    assert why in reason


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"to": [GOOD_PEER]}, "spec.ingress[0]: 'to' is a field that is not known"),
        ({"from": [GOOD_PEER], "unless": []}, "spec.ingress[0]: 'unless' is a field that is not known"),
        ("all", "spec.ingress[0]: 'all' should be an object"),
        (None, "spec.ingress[0]: None should be an object"),
    ],
)
def test_a_rule_that_cant_be_read_admits_nothing(rule, why):
    left, reason = rest(ingress=[rule, {"ports": [GOOD_PORT]}])
    assert left.rules == {INGRESS: (Rule(None, (HTTP,), "ingress[1]"),)}
    assert reason == why


@pytest.mark.parametrize("field", ["from", "ports"])
@pytest.mark.parametrize("value", ["all", {}, {"a": 1}, 0])
def test_a_list_that_is_none_is_not_taken_for_an_absent_one(field, value):
    left, reason = rest(ingress=[{field: value}])
    rule = left.rules[INGRESS][0]
    assert () in (rule.peers, rule.ports)
    assert "should be a list" in reason


def test_rules_that_are_no_list_admit_nothing():
    left, reason = rest(ingress={"from": []})
    assert left.rules == {INGRESS: ()}
    assert reason == "spec.ingress: an object should be a list"
    assert rest(egress="all")[0].rules == {INGRESS: (), EGRESS: ()}


@pytest.mark.parametrize("types", [["ingress"], ["Mesh"], "Egress", {}, [None]])
def test_a_policy_type_that_cant_be_read_may_be_either(types):
    left, _ = rest(policyTypes=types, ingress=[{}])
    assert left.rules == {INGRESS: (), EGRESS: ()}


def test_rules_of_a_policy_type_that_is_named_beside_an_unreadable_one_count():
    left, _ = rest(policyTypes=["Ingress", "Mesh"], ingress=[{}], egress=[{}])
    assert left.rules == {INGRESS: (Rule(None, None, "ingress[0]"),), EGRESS: ()}


def test_rules_without_effect_are_read_too():
    left, reason = rest(policyTypes=["Egress"], ingress=["all"])
    assert left.rules == {EGRESS: ()}
    assert reason == "spec.ingress[0]: 'all' should be an object"


@pytest.mark.parametrize(
    ("selector", "pods"),
    [
        ("db", EVERYTHING),
        ({"matchLabels": {"role": 1}}, EVERYTHING),
        ({"matchLabels": {"role": "db"}, "matchFields": {}}, EVERYTHING),
        ({"matchLabels": {"role": "db"}, "matchExpressions": [{"key": "a", "operator": "Near"}]}, DB),
    ],
)
def test_whom_a_policy_may_select_it_isolates_and_admits_nobody(selector, pods):
    """Pods that it does not really select may be isolated by another policy: to that, nothing may be added."""
    left, _ = rest(podSelector=selector, ingress=[{}], egress=[{}])
    assert (left.pods, left.rules) == (pods, {INGRESS: (), EGRESS: ()})


def test_a_field_that_nobody_knows_may_narrow_all_rules():
    left, reason = rest(podSelector={"matchLabels": {"role": "db"}}, ingress=[{}], unless="night")
    assert (left.pods, left.rules) == (DB, {INGRESS: ()})
    assert reason == "spec: 'unless' is a field that is not known"


def test_a_spec_that_is_no_object_isolates_the_namespace():
    with pytest.raises(PartialRefusal) as caught:
        NETWORK_POLICY.parse({"metadata": {"name": "p", "namespace": "shop"}, "spec": "deny"})
    assert (caught.value.rest.pods, caught.value.rest.rules) == (EVERYTHING, {INGRESS: (), EGRESS: ()})


def test_a_policy_that_is_refused_altogether_closes_its_namespace():
    with pytest.raises(Refusal) as caught:
        NETWORK_POLICY.parse({"metadata": {"name": "p", "labels": "x"}, "spec": {}})
    ref = ObjectRef(Kind.NETWORK_POLICY, "shop", "p")
    assert NETWORK_POLICY.refusal(ref, caught.value) == (Refused(ref, str(caught.value), Unreadable.CLOSED),)


def test_bytes_are_read_as_objects_are():
    spec = {"ingress": [{"from": [GOOD_PEER], "ports": [{"port": 80}, {"port": "http"}]}]}
    assert NETWORK_POLICY.parse(json.dumps(policy(**spec)).encode()) == parse(**spec)
    left, _ = rest(ingress=[{"from": [{}]}])
    with pytest.raises(PartialRefusal) as caught:
        NETWORK_POLICY.parse(json.dumps(policy(ingress=[{"from": [{}]}])).encode())
    assert caught.value.rest == left
    ref = ObjectRef(Kind.NETWORK_POLICY, "shop", "p")
    upserted, refused = NETWORK_POLICY.refusal(ref, caught.value)
    assert upserted == Upserted(ref, left)
    assert refused.means is Unreadable.IN_PART
