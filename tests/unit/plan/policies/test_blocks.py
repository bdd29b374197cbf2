"""The edges of blocks answer as the blocks themselves do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy_ebpf.model.policies import IpBlock, Prefix
from kproxy_ebpf.plan.policies.blocks import Blocks

addresses = st.integers(0, 255).map(lambda number: bytes([10, 0, 0, number]))


@st.composite
def blocks(draw: st.DrawFn) -> IpBlock:
    """Of the last 8 bits, so that blocks meet."""
    whole = prefix(draw(st.integers(0, 255)), draw(st.integers(24, 30)))
    excepts = st.builds(
        lambda number, more: prefix(whole.network[3] | number % (1 << 32 - whole.bits), min(32, whole.bits + more)),
        st.integers(0, 255),
        st.integers(1, 8),
    )
    return IpBlock(whole, tuple(draw(st.lists(excepts, max_size=3, unique=True))))


def prefix(number: int, bits: int) -> Prefix:
    return Prefix(bytes([10, 0, 0, number >> 32 - bits << 32 - bits & 255]), bits)


@settings(deadline=None)
@given(st.lists(blocks(), max_size=6), st.lists(st.integers(0, 5), max_size=4), st.lists(addresses, min_size=5))
def test_the_longest_edge_says_which_blocks_hold_an_address(
    added: list[IpBlock], removed: list[int], asked: list[bytes]
) -> None:
    table, known = Blocks(4), dict(enumerate(added))
    edges: dict[Prefix, frozenset[int]] = {}
    for number, block in known.items():
        edges |= table.add(number, block).changed
    for number in removed:
        if number in known:
            changes = table.remove(number, known.pop(number))
            edges |= changes.changed
            edges = {each: traits for each, traits in edges.items() if each not in changes.removed}
    for address in asked:
        holding = frozenset(number for number, block in known.items() if block.holds(address))
        assert table.traits_of(address) == holding
        around = [each for each in edges if each.holds(address)]
        assert (edges[max(around, key=lambda each: each.bits)] if around else frozenset()) == holding
    assert len(table) == len(edges) == len({each for block in known.values() for each in (block.block, *block.excepts)})


def test_edges_that_a_block_would_add() -> None:
    table = Blocks(4)
    block = IpBlock(prefix(0, 24), (prefix(8, 30),))
    assert table.new_edges(block) == 2
    table.add(1, block)
    assert table.new_edges(block) == 0
    assert table.new_edges(IpBlock(prefix(0, 24), (prefix(16, 30),))) == 1
