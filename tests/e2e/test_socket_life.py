"""Sockets that were translated at connect(), over time: backends go, daemons come and go, modes are switched."""

from __future__ import annotations

import struct
from contextlib import ExitStack, closing

from sockets import (
    FORMS,
    PORTS,
    aborted,
    asked,
    asked_by_datagram,
    connected,
    mode_of,
    server_of,
    socket_of,
    stored,
    terminating,
    vip_of,
)
from worlds import in_worlds

from kproxy_ebpf.contract.layouts import BackendState
from kproxy_ebpf.datapath.generations.generation import current
from kproxy_ebpf.datapath.maps.service_tables import ServiceMaps
from kproxy_ebpf.lab.traffic import ask, echo
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.service_tables import TableWrites
from kproxy_ebpf.model.services import Protocol

pytestmark = in_worlds("hybrid")


def test_a_socket_whose_backend_is_gone_is_told_at_once(world, form):
    web1, web2, _ = world.webs
    service, other = world.service([web1]), world.service([web1])
    with connected(world, service, form) as handle, connected(world, other, form) as bystander:
        service.endpoints([*terminating(web1), web2])
        until(lambda: server_of(world, service, form) == "web2", "new connections to go to web2")
        assert not aborted(handle), "its pod still serves"
        service.endpoints([web2])
        until(lambda: aborted(handle), "the socket to end")
        assert not aborted(bystander), "the other Service has the endpoint still"


def test_a_socket_whose_endpoint_left_while_ready_goes_on(world, form):
    web1, web2, _ = world.webs
    service = world.service([web1])
    with connected(world, service, form) as handle:
        service.endpoints([web2])
        until(lambda: server_of(world, service, form) == "web2", "new connections to go to web2")
        echo(handle, b"still with web1")
        service.remove()
        echo(handle, b"its endpoint lives")


def test_many_sockets_end_together_and_no_other(world, family):
    """There are more backends than the request to the kernel names one by one."""
    web1, web2, _ = world.webs
    ports = {f"p{number}": (6000 + number, "TCP", 8080) for number in range(40)}
    service, other = world.service([web1], ports), world.service([web1])
    handles = []
    with connected(world, other, {4: "ipv4", 6: "ipv6"}[family]) as bystander:
        try:
            for port, _, _ in ports.values():
                handle = socket_of(world.client, service.vip(family))
                handles.append(handle)
                handle.connect((service.vip(family), port))
                asked(handle)
            service.endpoints([*terminating(web1), web2])
            until(lambda: ask(world.client, service.vip(family), 6039).server == "web2", "web2 to serve")
            service.endpoints([web2])
            for handle in handles:
                until(lambda handle=handle: aborted(handle), "every socket to end")
        finally:
            for handle in handles:
                handle.close()
        echo(bystander, b"still with web1")


def test_what_was_lost_while_no_daemon_ran_is_made_good(world, form):
    """The daemon is killed between the write to the table and the end of the sockets."""
    service = world.service(world.webs[:1])
    daemon = world.daemon
    with connected(world, service, form) as stream:
        daemon.stop()
        family = FORMS[form]
        rows = [row for row in daemon.json("backends") if row["service"].startswith(f"default/{service.name}:")]
        numbers = [row["id"] for row in rows if row["family"] == family]
        with closing(ServiceMaps(current(daemon.bpffs), family)) as maps:
            maps.apply(TableWrites(backend_states=dict.fromkeys(numbers, (int(BackendState.GONE), 0))))
        assert not aborted(stream)
        daemon.start()
        until(lambda: aborted(stream), "the connection to end")


def test_sockets_led_by_programs_that_did_not_note_it_end_with_their_backend(world, form):
    """An earlier version's programs had no such map. Other sockets were led to the id's former backend."""
    web1, web2, _ = world.webs
    service, daemon, family = world.service([web1]), world.daemon, FORMS[form]
    with connected(world, service, form) as handle, ExitStack() as others:
        daemon.stop()
        numbers = [row["id"] for row in daemon.json("backends") if row["family"] == family]
        for epochs in range(1, 9):
            other = others.enter_context(connected(world, service, form))
            with stored(world, other, form) as peer:
                peer.epoch -= epochs
        with current(daemon.bpffs).map("led", family) as led:
            for number in numbers:
                led.update(struct.pack("=I", number), bytes(4))
        daemon.start()
        service.endpoints([*terminating(web1), web2])
        until(
            lambda: any(row["id"] not in numbers for row in daemon.json("backends") if row["family"] == family),
            "web2 in the tables",
        )
        service.endpoints([web2])
        until(lambda: aborted(handle), "the socket to end")


def test_no_daemon_and_a_new_one_change_nothing_for_open_sockets(world, form, protocol):
    service = world.service(world.webs)
    peer = (vip_of(service, form), PORTS[protocol])
    with connected(world, service, form, protocol) as handle:
        world.daemon.kill()
        assert handle.getpeername()[:2] == peer
        assert server_of(world, service, form, protocol).startswith("web")
        world.daemon.start()
        assert handle.getpeername()[:2] == peer
        talks(handle, protocol)


def test_an_upgrade_changes_nothing_for_open_sockets(world, form, protocol):
    """Other constants stand for another version, since they give another generation."""
    service, daemon = world.service(world.webs), world.daemon
    peer = (vip_of(service, form), PORTS[protocol])
    with (
        connected(world, service, form, protocol) as handle,
        socket_of(world.client, peer[0], Protocol.UDP) as datagrams,
    ):
        server = asked_by_datagram(datagrams, peer[0])
        before = current(daemon.bpffs).digest
        daemon.stop()
        daemon.flags += ["--max-flows", str(65536 + 1024 * (len(daemon.flags) // 2))]  # the last one counts
        daemon.start()
        assert current(daemon.bpffs).digest != before
        assert handle.getpeername()[:2] == peer
        talks(handle, protocol)
        assert asked_by_datagram(datagrams, peer[0]) == server
        assert server_of(world, service, form, protocol).startswith("web")


def test_a_switch_of_modes_changes_nothing_for_open_sockets(world, protocol):
    service = world.service(world.webs)
    with (
        connected(world, service, "ipv4", protocol) as four,
        connected(world, service, "ipv6", protocol) as six,
        connected(world, service, "mapped", protocol) as mapped,
        socket_of(world.client, service.vip4, Protocol.UDP) as datagrams,
    ):
        before = asked_by_datagram(datagrams, service.vip4)
        for mode in ("tc", "socket", "off", "hybrid", "off", "tc", "hybrid"):
            world.daemon.settings({"mode": mode})
            until(lambda mode=mode: mode_of(world) == mode, f"mode {mode}")
            for handle, form in ((four, "ipv4"), (six, "ipv6"), (mapped, "mapped")):
                assert handle.getpeername()[:2] == (vip_of(service, form), PORTS[protocol])
                talks(handle, protocol)
            assert asked_by_datagram(datagrams, service.vip4) == before


def talks(handle, protocol):
    """True if the connection still carries data, to the same server as before."""
    if protocol is Protocol.TCP:
        echo(handle, b"still here")
    else:
        asked(handle, protocol)


def test_links_are_brought_back_when_somebody_took_them_off(world):
    daemon = world.daemon
    service = world.service(world.webs)
    daemon.stop()
    daemon.flags += ["--sync-period", "1"]
    daemon.start()
    pin = daemon.bpffs / "kproxy-ebpf/links/cgroup-connect_v4"
    pin.unlink()
    until(pin.exists, "the link to be back")
    with connected(world, service, "ipv4") as handle:
        assert handle.getpeername()[0] == service.vip4
