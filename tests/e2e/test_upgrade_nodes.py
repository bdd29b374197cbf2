"""Another version takes over on one of two nodes, while packets between their pods bypass the hosts' stacks."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from redirect import PATIENCE, straight, ways
from upgrades import CHANGES, Traffic
from versions import SLOW
from worlds import in_worlds

from kproxy_ebpf.lab.traffic import ask
from kproxy_ebpf.lab.wait import until

pytestmark = [in_worlds("redirect"), pytest.mark.timeout(600)]  # each compiles two or three times

CONNECTIONS = 30  # for each family and direction

HERE = {
    "other programs": CHANGES["other programs"],
    "another flow table, link by link": CHANGES["another flow table"] | {"edits": SLOW},
}


@pytest.mark.parametrize("upgrade", HERE.values(), ids=HERE.keys(), indirect=True)
def test_an_upgrade_and_the_way_back_under_load(world, upgrade):
    far = world.lab.nodes["node2"].pods
    ways_there = (world.client, world.webs), (world.client, [far["far"]]), (far["farclient"], world.webs)
    with ExitStack() as stack:
        traffic = [stack.enter_context(Traffic(world, *ends, connections=CONNECTIONS)) for ends in ways_there]
        for _ in range(2):
            upgrade()
            for each in traffic:
                each.go_on()
    before = straight(ways(world.daemon))
    address = far["far"].ip4
    until(
        lambda: ask(world.client, address, 8080) and straight(ways(world.daemon)) > before,
        "packets to go straight again",
        seconds=PATIENCE,
    )
