"""The life of a daemon: killed, restarted, ended; and the datapath that goes on meanwhile."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from contextlib import ExitStack

import pytest

from kproxy_ebpf.lab.traffic import Load, ask, echo, opened, read_answer
from kproxy_ebpf.lab.wait import until

CONNECTIONS = 200


class Crowd:
    """Open connections that a thread keeps busy until the block ends; `failures` says which broke and how."""

    def __init__(self, place, address, port, count):
        self.failures: list[str] = []
        self.rounds = 0
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._handles = [self._stack.enter_context(opened(place, address, port)) for _ in range(count)]
        self.spread = Counter(read_answer(handle, 0).server for handle in self._handles)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._stop.is_set():
            for number, handle in enumerate(self._handles):
                try:
                    echo(handle, b"%d of round %d" % (number, self.rounds))
                except OSError as error:
                    self.failures.append(f"connection {number}: {error!r}")
            self.rounds += 1

    def more_rounds(self, count=3):
        target = self.rounds + count
        until(lambda: self.rounds >= target, f"{count} more rounds of traffic", seconds=20)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._stack.close()


def programs_of(daemon):
    """The kernel's ids of the programs and links in force, by the name of their pin."""
    pins = [*sorted((daemon.bpffs / "kproxy-ebpf" / "current").resolve().glob("programs/*"))]
    links = sorted((daemon.bpffs / "kproxy-ebpf" / "links").glob("*"))
    assert pins
    shown = {pin.name: bpftool("prog", "show", "pinned", str(pin)) for pin in pins}
    return {name: value["id"] for name, value in shown.items()} | {
        link.name: (info["id"], info["prog_id"])
        for link in links
        for info in [bpftool("link", "show", "pinned", str(link))]
    }


def bpftool(*words):
    return json.loads(subprocess.run(["bpftool", "-j", *words], capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def service(world):
    return world.service(world.webs)


def test_a_killed_daemon_breaks_no_connection_and_its_successor_adopts(world, service, family):
    daemon = world.daemon
    before = programs_of(daemon)
    with Crowd(world.client, service.vip(family), 80, CONNECTIONS) as crowd:
        assert set(crowd.spread) == {"web1", "web2", "web3"}
        crowd.more_rounds()
        daemon.kill()
        crowd.more_rounds()
        answers = Counter(ask(world.client, service.vip(family), 80).server for _ in range(100))
        assert set(answers) == {"web1", "web2", "web3"}
        daemon.start()
        crowd.more_rounds()
        assert crowd.failures == []
    assert programs_of(daemon) == before
    written = {name: value for name, value in daemon.metrics().items() if "map_writes_total" in name and value}
    assert written == {}


def test_a_change_while_the_daemon_was_gone_is_in_force_after_its_start(world, family):
    service = world.service(world.webs[:1])
    world.daemon.stop()
    service.endpoints(world.webs[1:2])
    assert ask(world.client, service.vip(family), 80).server == "web1"
    world.daemon.start()
    until(lambda: ask(world.client, service.vip(family), 80).server == "web2", "the new endpoint")


def test_sigterm_ends_the_daemon_cleanly_and_the_datapath_stays(world, service, family):
    assert world.daemon.stop() == 0
    assert ask(world.client, service.vip(family), 80).server.startswith("web")
    world.daemon.start()


def test_backends_come_and_go_without_a_failed_request(world, family):
    service = world.service(world.webs)
    load = Load(world.client, service.vip(family), 80)
    try:
        load.go_on(100)
        assert len(load.answers) == 3
        for _ in range(3):
            service.endpoints(world.webs[:2])
            until(lambda: rests(load, "web3"), "web3 to be left alone")
            service.endpoints(world.webs)
            seen = load.answers["web3"]
            until(lambda seen=seen: load.answers["web3"] > seen, "web3 to be back")
    finally:
        load.stop()
    assert load.failures == []


def rests(load, server):
    """Nothing more to `server` in the next 50 answers."""
    seen = load.answers[server]
    load.go_on(50)
    return load.answers[server] == seen
