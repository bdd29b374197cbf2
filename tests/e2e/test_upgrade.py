"""Another version of the programs takes over: other constants stand for it, since they give another generation."""

from __future__ import annotations

import pytest
from worlds import in_worlds, programs_of

from kproxy_ebpf.lab.crowd import Crowd
from kproxy_ebpf.lab.traffic import Load

pytestmark = in_worlds("tcx", "clsact")

OTHER_SHAPES = {
    "another flow table": ["--max-flows", "65536"],
    "other service tables": ["--max-frontends", "1024", "--max-backends", "4096", "--max-slots", "8192"],
}


@pytest.mark.parametrize("flags", OTHER_SHAPES.values(), ids=OTHER_SHAPES.keys())
def test_the_next_generation_takes_over_without_a_lost_connection(world, flags):
    daemon = world.daemon
    service = world.service(world.webs)
    before = programs_of(daemon)
    loads = [Load(world.client, service.vip(family), 80, pause=0.005) for family in (4, 6)]
    with Crowd(world.client, service.vip(4), 80, 50) as four, Crowd(world.client, service.vip(6), 80, 50) as six:
        try:
            daemon.stop()
            daemon.flags += flags  # the last one of a name counts
            daemon.start()
            for traffic in (*loads, four, six):
                traffic.go_on(100 if traffic in loads else 3)
        finally:
            for load in loads:
                load.stop()
    assert [traffic.failures for traffic in (*loads, four, six)] == [[]] * 4
    assert programs_of(daemon) != before
    root = daemon.bpffs / "kproxy-ebpf"
    assert [path for path in root.iterdir() if (path / "maps").is_dir() and not path.is_symlink()] == [
        (root / "current").resolve()
    ]
