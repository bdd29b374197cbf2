"""Another version of the programs takes over: other constants stand for it, since they give another generation."""

from __future__ import annotations

import pytest
from test_life import Crowd, programs_of

from kproxy_ebpf.lab.traffic import Load, ask

pytestmark = pytest.mark.parametrize(
    "world", [{"attach": "tcx"}, {"attach": "clsact"}], ids=["tcx", "clsact"], indirect=True, scope="module"
)

OTHER_SHAPES = {
    "the same maps": [],
    "another flow table": ["--max-flows", "65536"],
    "other service tables": ["--max-frontends", "1024", "--max-backends", "4096", "--max-slots", "8192"],
}


@pytest.mark.parametrize("flags", OTHER_SHAPES.values(), ids=OTHER_SHAPES.keys())
def test_the_next_generation_takes_over_without_a_lost_connection(world, family, flags):
    daemon = world.daemon
    service = world.service(world.webs)
    before = programs_of(daemon)
    load = Load(world.client, service.vip(family), 80)
    original = list(daemon.flags)
    with Crowd(world.client, service.vip(family), 80, 50) as crowd:
        try:
            crowd.more_rounds()
            daemon.stop()
            daemon.flags += flags
            daemon.start()
            load.go_on(100)
            crowd.more_rounds()
        finally:
            load.stop()
        assert crowd.failures == []
    assert load.failures == []
    after = programs_of(daemon)
    assert (after == before) == (flags == [])
    generations = [path for path in daemon.bpffs.joinpath("kproxy-ebpf").iterdir() if (path / "maps").is_dir()]
    assert len({path.resolve() for path in generations}) == 1
    daemon.flags[:] = original
    daemon.stop()
    daemon.start()
    assert ask(world.client, service.vip(family), 80).server in load.answers
