"""The life of a daemon: killed, restarted, ended; and the datapath that goes on meanwhile."""

from __future__ import annotations

from collections import Counter

import pytest
from worlds import programs_of

from kproxy_ebpf.lab.crowd import Crowd
from kproxy_ebpf.lab.manifests import DEFAULT_PORTS
from kproxy_ebpf.lab.traffic import Load, ask
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.observe.state import read_json, state_dir

CONNECTIONS = 200


@pytest.fixture(scope="module")
def service(world):
    return world.service(world.webs)


def test_a_killed_daemon_breaks_no_connection_and_its_successor_adopts(world, service, family):
    daemon = world.daemon
    before, tables = programs_of(daemon), shown(world, service)
    with Crowd(world.client, service.vip(family), 80, CONNECTIONS) as crowd:
        assert set(crowd.spread) == {"web1", "web2", "web3"}
        crowd.go_on()
        daemon.kill()
        crowd.go_on()
        answers = Counter(ask(world.client, service.vip(family), 80).server for _ in range(100))
        assert set(answers) == {"web1", "web2", "web3"}
        daemon.start()
        crowd.go_on()
        assert crowd.failures == []
    assert programs_of(daemon) == before
    until(lambda: tables_of(daemon, service) == tables, "the same tables to be shown, with the Services' names")
    assert written_by(daemon) == {}
    world.service(world.webs)  # the count would have told
    assert written_by(daemon)


def shown(world, service):
    """The rows of a Service that is in force, once the commands know its name for all of them."""
    of_a_port = 1 + len(world.webs)
    until(lambda: len(tables_of(world.daemon, service)) == 2 * len(DEFAULT_PORTS) * of_a_port, "its name to be shown")
    return tables_of(world.daemon, service)


def tables_of(daemon, service):
    """What the commands show of a Service's tables: ids and epochs too."""
    rows = [row for table in ("services", "backends") for row in daemon.json(table)]
    return [row for row in rows if row["service"].startswith(f"default/{service.name}:")]


def written_by(daemon):
    """How many entries the daemon wrote since its start, by table."""
    return {name: value for name, value in daemon.metrics().items() if "map_writes_total" in name and value}


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
    for command in ("status", "services", "backends", "flows"):
        assert world.daemon.json(command), command
    assert "not running" in world.daemon.command("status").stdout
    world.daemon.start()


def test_what_changed_last_is_known_after_the_end(world):
    daemon, pod = world.daemon, world.node.pod("leaving")
    status, pins = state_dir(daemon.bpffs) / "status.json", daemon.bpffs / "kproxy-ebpf" / "links"
    prefix = f"{world.node.ifindex(pod.host_link)}-"
    until(lambda: pod.host_link in read_json(status)["links"], "the link to be known")
    world.node.remove(pod)
    until(lambda: not list(pins.glob(f"{prefix}*")), "the link to be left")
    daemon.stop()
    assert pod.host_link not in read_json(status)["links"]
    daemon.start()


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
    """True if none of the next 50 answers comes from `server`."""
    seen = load.answers[server]
    load.go_on(50)
    return load.answers[server] == seen
