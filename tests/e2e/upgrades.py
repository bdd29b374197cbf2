"""What changes at an upgrade, and the traffic that must not notice it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from versions import CODE, SCHEMA

from kproxy_ebpf.lab.crowd import Crowd
from kproxy_ebpf.lab.traffic import Load, ask
from kproxy_ebpf.model.services import Protocol

CONNECTIONS, CALLERS = 500, 50  # for each family
CHANGES = {
    "other programs": {"edits": CODE},
    "another schema": {"edits": SCHEMA},
    "another flow table": {"flags": ["--max-flows", "65536"]},
    "other service tables": {"flags": ["--max-frontends", "1024", "--max-backends", "4096", "--max-slots", "8192"]},
}


class Traffic:
    """What must not notice an upgrade: connections, new ones, UDP clients with fixed ports, affinity.

    `known`: flows are migrated. Otherwise there is no UDP, and no second VIP of the same backends, at which a new
    connection may have the client port of a connection that is not known any more.
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
