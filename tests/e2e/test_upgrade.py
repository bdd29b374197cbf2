"""Another version takes over while connections carry traffic, and the first one again: no connection notices."""

from __future__ import annotations

import pytest
from upgrades import CHANGES, Traffic
from versions import OTHER_SIZE
from worlds import in_worlds, programs_of

pytestmark = [in_worlds("tcx", "clsact"), pytest.mark.timeout(600)]  # each compiles two or three times


@pytest.mark.parametrize("upgrade", CHANGES.values(), ids=CHANGES.keys(), indirect=True)
def test_an_upgrade_and_the_way_back_under_load(world, upgrade):
    before = programs_of(world.daemon)
    with Traffic(world, world.client, world.webs) as traffic:
        traffic.go_on()
        for _ in range(2):
            upgrade()
            traffic.go_on()
            assert programs_of(world.daemon) != before
            assert generations(world.daemon) == [current(world.daemon)], "the others are gone"


@pytest.mark.parametrize("upgrade", [{"edits": OTHER_SIZE}], ids=["a field of another size"], indirect=True)
def test_flows_that_can_not_be_carried_over_stay_with_their_programs(world, upgrade):
    with Traffic(world, world.client, world.webs, known=False) as traffic:
        for _ in range(2):
            upgrade()
            traffic.go_on()
            assert len(generations(world.daemon)) == 2
            assert "a table is not carried over" in world.daemon.log()


def generations(daemon):
    root = daemon.bpffs / "kproxy-ebpf"
    return [path for path in root.iterdir() if (path / "maps").is_dir() and not path.is_symlink()]


def current(daemon):
    return (daemon.bpffs / "kproxy-ebpf" / "current").resolve()
