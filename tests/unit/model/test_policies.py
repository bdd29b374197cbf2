"""Selectors, blocks and ports by themselves."""

from __future__ import annotations

import pytest

from kproxy_ebpf.model.policies import IpBlock, Operator, PortRange, Prefix, Requirement, merged
from kproxy_ebpf.model.services import Protocol, packed

TCP, UDP = Protocol.TCP, Protocol.UDP


@pytest.mark.parametrize(
    ("operator", "values", "of_x", "of_y", "without"),
    [
        (Operator.IN, {"x"}, True, False, False),
        (Operator.NOT_IN, {"x"}, False, True, True),
        (Operator.EXISTS, set(), True, True, False),
        (Operator.DOES_NOT_EXIST, set(), False, False, True),
    ],
)
def test_a_requirement_is_met_as_upstream_says(operator, values, of_x, of_y, without):
    requirement = Requirement("k", operator, frozenset(values))
    assert requirement.is_met({"k": "x"}) is of_x
    assert requirement.is_met({"k": "y"}) is of_y
    assert requirement.is_met({"other": "x"}) is without


def test_a_block_holds_what_no_except_of_its_own_takes():
    block = IpBlock(Prefix(packed("10.0.0.0"), 8), (Prefix(packed("10.1.0.0"), 16),))
    assert block.holds(packed("10.2.0.1"))
    assert not block.holds(packed("10.1.0.1"))
    assert not block.holds(packed("11.0.0.1"))
    assert not block.holds(packed("a00::"))
    assert IpBlock(Prefix(packed("::"), 0)).holds(packed("fd00::1"))
    assert not IpBlock(Prefix(packed("::"), 0)).holds(packed("10.0.0.1"))
    assert str(block) == "10.0.0.0/8 except 10.1.0.0/16"


def test_ranges_that_touch_become_one():
    ranges = [
        PortRange(UDP, 1, 5),
        PortRange(TCP, 6, 7),
        PortRange(TCP, 1, 5),
        PortRange(TCP, 3, 4),
        PortRange(TCP, 9, 9),
    ]
    assert merged(ranges) == (PortRange(TCP, 1, 7), PortRange(TCP, 9, 9), PortRange(UDP, 1, 5))
    assert [str(each) for each in merged(ranges)] == ["1-7/TCP", "9/TCP", "1-5/UDP"]
    assert str(PortRange(TCP, 0, 65535)) == "all TCP"
