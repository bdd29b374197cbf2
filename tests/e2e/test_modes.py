"""Switching modes while traffic flows: off drains, on serves again, and no connection notices."""

from __future__ import annotations

import socket
import struct

import pytest
from tcx import EGRESS, INGRESS, programs_at
from worlds import running_world

from kproxy_ebpf.lab.manifests import DEFAULT_PORTS
from kproxy_ebpf.lab.traffic import ask, echo, opened, read_answer
from kproxy_ebpf.lab.wait import until

PORTS = range(22000, 22030)  # below those that the kernel hands out
DRAINED_SECONDS = 20  # the daemon looks every five seconds


@pytest.fixture(scope="module")
def world():
    """A world of its own: connections of other tests would have to end first, and the flags change."""
    with running_world(mode="tc") as world:
        yield world


@pytest.fixture(scope="module")
def service(world):
    """TCP alone: a UDP flow ends two minutes after its last datagram."""
    return world.service(world.webs, {"http": DEFAULT_PORTS["http"]})


def is_served(world, service, family):
    try:
        return bool(ask(world.client, service.vip(family), 80))
    except OSError:
        return False


def test_off_serves_what_is_open_until_it_ends_and_then_leaves_the_links(world, service, family):
    daemon, link = world.daemon, world.client.host_link
    with opened(world.client, service.vip(family), 80) as connection:
        read_answer(connection, 0)
        daemon.settings({"mode": "off"})
        until(lambda: not is_served(world, service, family), "new connections to be left alone")
        echo(connection, b"still here")
        assert programs_at(world.node, link, INGRESS)
        echo(connection, b"and still")
    until(
        lambda: not programs_at(world.node, link, INGRESS) + programs_at(world.node, link, EGRESS),
        "the programs to be taken off",
        seconds=DRAINED_SECONDS,
    )
    assert daemon.healthz()[0] == 200
    daemon.settings({"mode": "tc"})
    until(lambda: is_served(world, service, family), "new connections to be served again")
    with opened(world.client, service.vip(family), 80) as connection:
        assert read_answer(connection, 0).server in {"web1", "web2", "web3"}


def test_programs_that_somebody_took_off_come_back(world, service):
    daemon, link = world.daemon, world.client.host_link
    daemon.stop()
    daemon.flags += ["--sync-period", "1"]
    daemon.start()
    for pin in (daemon.bpffs / "kproxy-ebpf" / "links").glob("*-from_pod_v4"):
        pin.unlink()
    # The kernel takes a program off a moment after the last pin has gone.
    until(lambda: len(programs_at(world.node, link, INGRESS)) == 1, "the program to be off")
    until(lambda: len(programs_at(world.node, link, INGRESS)) == 2, "the program to be back", seconds=20)
    assert is_served(world, service, 4)


def test_maglev_gives_the_same_backend_to_the_same_connection(world, service, family):
    """It does so each time, and when another backend goes. Connections begun at random go on meanwhile."""

    def dealt():
        return {port: chosen(world.client, service.vip(family), port) for port in PORTS}

    with opened(world.client, service.vip(family), 80) as at_random:
        read_answer(at_random, 0)
        world.daemon.settings({"balancing": "maglev"})
        until(lambda: dealt() == dealt(), "maglev to be in force", seconds=30)
        first = dealt()
        assert set(first.values()) == {"web1", "web2", "web3"}
        service.endpoints(world.webs[:2])
        until(lambda: "web3" not in dealt().values(), "web3 to be left alone", seconds=30)
        second = dealt()
        moved = [port for port in PORTS if first[port] not in ("web3", second[port])]
        assert len(moved) <= len(PORTS) // 5
        service.endpoints(world.webs)
        until(lambda: dealt() == first, "all to be as it was", seconds=30)
        world.daemon.settings({"balancing": "random"})
        until(lambda: dealt() != dealt(), "random to be back", seconds=30)
        echo(at_random, b"still with its backend")


def chosen(client, vip, source_port):
    """Who answers a connection from this port, which is free again afterwards."""
    with opened(client, vip, 80, source_port=source_port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a RST
        return read_answer(connection, 0).server
