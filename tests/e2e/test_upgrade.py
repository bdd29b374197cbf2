"""Another version takes over while connections carry traffic, and the first one again: no connection notices."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest
from versions import CODE, OTHER_SIZE, SCHEMA, other_version
from worlds import in_worlds, programs_of

from kproxy_ebpf.lab.crowd import Crowd
from kproxy_ebpf.lab.traffic import Load, ask
from kproxy_ebpf.model.services import Protocol

pytestmark = [in_worlds("tcx", "clsact"), pytest.mark.timeout(300)]  # each compiles two or three times

CONNECTIONS, CALLERS = 500, 50  # for each family

CHANGES = {
    "other programs": {"edits": CODE},
    "another schema": {"edits": SCHEMA},
    "another flow table": {"flags": ["--max-flows", "65536"]},
    "other service tables": {"flags": ["--max-frontends", "1024", "--max-backends", "4096", "--max-slots", "8192"]},
}


@pytest.fixture
def upgrade(world, request, tmp_path):
    """Starts the daemon of another version, or with other flags; called again, the first one. It is left running."""
    daemon, change = world.daemon, getattr(request, "param", {})
    first = daemon.flags, daemon.environment
    other = daemon.flags + change.get("flags", []), daemon.environment  # the last flag of a name counts
    if edits := change.get("edits"):
        other = other[0], {"PYTHONPATH": str(other_version(tmp_path / "version", edits))}
    versions = [first, other]

    def start_next():
        versions.append(versions.pop(0))
        daemon.stop()
        daemon.flags, daemon.environment = versions[0]
        daemon.start()

    yield start_next
    if daemon.process is None or (daemon.flags, daemon.environment) != first:
        daemon.flags, daemon.environment = first
        if daemon.process is not None:
            daemon.stop()
        daemon.start()


class Traffic:
    """What must not notice an upgrade: connections, new ones, UDP clients with fixed ports, affinity.

    Not `known` means that flows are not carried over: then without UDP, and without a second VIP of the same backends,
    where a new connection may have the client port of one that is not known any more.
    """

    def __init__(self, world, client, servers, *, connections=CONNECTIONS, known=True):
        self._stack = ExitStack()
        self._affine = dict
        self._client, self._names = client, {pod.name for pod in servers}
        if known:
            self._affine = partial(self._asked, world.service(servers, sessionAffinity="ClientIP"))
        service = world.service(servers)
        crowds = [Crowd(client, service.vip(family), 80, connections) for family in (4, 6)]
        self._steady = [self._stack.enter_context(crowd) for crowd in crowds]
        if known:
            callers = [Crowd(client, service.vip(family), 53, CALLERS, Protocol.UDP) for family in (4, 6)]
            self._steady += [self._stack.enter_context(it) for it in callers]
        self._loads = [Load(client, service.vip(family), 80, pause=0.005) for family in (4, 6)]
        for load in self._loads:
            self._stack.callback(load.stop)
        self._favourites = self._affine()

    def _asked(self, service):
        """The servers of three connections for each family: one and the same, by affinity."""
        vips = [service.vip(family) for family in (4, 6)]
        return {vip: {ask(self._client, vip, 80).server for _ in range(3)} for vip in vips}

    def go_on(self):
        for load in self._loads:
            load.go_on(100)
        for steady in self._steady:
            assert set(steady.spread) == self._names
            steady.go_on(2)
        assert [it.failures for it in (*self._loads, *self._steady)] == [[]] * (2 + len(self._steady))
        assert self._affine() == self._favourites

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()


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
