"""Another version takes over on one of two nodes whose pods reach each other past the hosts' stacks."""

from __future__ import annotations

import pytest
from test_redirect_nodes import PATIENCE, straight, ways
from test_upgrade import CHANGES, Traffic, upgrade  # noqa: F401  # a fixture
from worlds import in_worlds

from kproxy_ebpf.lab.traffic import ask
from kproxy_ebpf.lab.wait import until

pytestmark = in_worlds("redirect")

CONNECTIONS = 50  # for each family and direction

SOME = ("other programs", "another flow table")


@pytest.mark.parametrize("upgrade", [CHANGES[name] for name in SOME], ids=SOME, indirect=True)
def test_an_upgrade_and_the_way_back_under_load(world, upgrade):  # noqa: F811
    far = world.lab.nodes["node2"].pods
    with (
        Traffic(world, world.client, [far["far"]], connections=CONNECTIONS) as leaving,
        Traffic(world, far["farclient"], world.webs, connections=CONNECTIONS) as arriving,
    ):
        for _ in range(2):
            upgrade()
            leaving.go_on()
            arriving.go_on()
    before = straight(ways(world.daemon))
    address = far["far"].ip4
    until(
        lambda: ask(world.client, address, 8080) and straight(ways(world.daemon)) > before,
        "packets to go straight again",
        seconds=PATIENCE,
    )
