"""Sockets that were translated at connect(), over time: backends go, daemons come and go, modes are switched."""

from __future__ import annotations

import struct
from contextlib import ExitStack, closing
from ipaddress import ip_address

import pytest
from sockets import FORMS, PORTS, asked, asked_by_datagram, connected, server_of, socket_of, stored, vip_of
from worlds import UDP_PORT, in_worlds

from kproxy_ebpf.contract.layouts import BackendState
from kproxy_ebpf.datapath.generations.generation import current
from kproxy_ebpf.datapath.maps.service_tables import ServiceMaps
from kproxy_ebpf.lab.manifests import EndpointSpec
from kproxy_ebpf.lab.traffic import ask, echo
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.service_tables import TableWrites
from kproxy_ebpf.model.services import Protocol

pytestmark = [in_worlds("hybrid"), pytest.mark.usefixtures("attached_long_ago")]


def terminating(pod):
    return [EndpointSpec(address, ready=False, serving=True, terminating=True) for address in (pod.ip4, pod.ip6)]


def aborted(handle):
    """True if the application has been told, though it did nothing but wait."""
    handle.settimeout(0.05)
    try:
        handle.recv(100)
    except ConnectionAbortedError:
        return True
    except TimeoutError:
        pass
    finally:
        handle.settimeout(2)
    return False


def test_a_socket_whose_backend_is_gone_is_told_at_once(world, form, protocol):
    web1, web2, _ = world.webs
    service, other = world.service([web1]), world.service([web1])
    with connected(world, service, form, protocol) as handle, connected(world, other, form, protocol) as bystander:
        service.endpoints([*terminating(web1), web2])
        until(lambda: server_of(world, service, form, protocol) == "web2", "new connections to go to web2")
        assert not aborted(handle), "its pod still serves"
        service.endpoints([web2])
        until(lambda: aborted(handle), "the socket to end")
        assert not aborted(bystander), "the other Service has the endpoint still"


def test_of_an_endpoint_that_left_while_ready_only_udp_ends(world, form):
    web1, web2, _ = world.webs
    service = world.service([web1])
    with connected(world, service, form) as stream, connected(world, service, form, Protocol.UDP) as datagrams:
        service.endpoints([web2])
        until(lambda: aborted(datagrams), "the socket to end")
        assert server_of(world, service, form) == "web2"
        echo(stream, b"still with web1")


def test_udp_of_a_service_that_is_removed_ends(world, form):
    service = world.service(world.webs[:1])
    with connected(world, service, form) as stream, connected(world, service, form, Protocol.UDP) as datagrams:
        service.remove()
        until(lambda: aborted(datagrams), "the socket to end")
        echo(stream, b"its endpoint lives")


def test_unconnected_udp_moves_with_the_next_datagram(world, form):
    web1, web2, _ = world.webs
    service = world.service([web1])
    vip = vip_of(service, form)
    with socket_of(world.client, vip, Protocol.UDP) as handle:
        assert asked_by_datagram(handle, vip) == ("web1", (vip, UDP_PORT))
        service.endpoints([web2])
        until(lambda: asked_by_datagram(handle, vip) == ("web2", (vip, UDP_PORT)), "datagrams to reach web2")


def test_unconnected_udp_moves_when_its_backends_id_is_anothers(world, form):
    """Tables that were filled anew count ids and epochs from the beginning."""
    service, family = world.service(world.webs[:1]), FORMS[form]
    vip = vip_of(service, form)
    names = {f"default/{service.name}:{port}" for port in service.ports}
    rows = [row for row in world.daemon.json("backends") if row["service"] in names and row["family"] == family]
    with (
        current(world.daemon.bpffs).map("backends", family) as table,
        socket_of(world.client, vip, Protocol.UDP) as handle,
    ):
        assert asked_by_datagram(handle, vip)[0] == "web1"
        before = {number: table.lookup(number) for number in (struct.pack("=I", row["id"]) for row in rows)}
        address = ip_address(world.webs[1].address(family)).packed
        try:
            for number, value in before.items():
                table.update(number, address + value[len(address) :])
            assert asked_by_datagram(handle, vip) == ("web2", (vip, UDP_PORT))
        finally:
            for number, value in before.items():
                table.update(number, value)


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
    with connected(world, service, form) as stream, connected(world, service, form, Protocol.UDP) as datagrams:
        daemon.stop()
        family = FORMS[form]
        rows = [row for row in daemon.json("backends") if row["service"].startswith(f"default/{service.name}:")]
        numbers = [row["id"] for row in rows if row["family"] == family]
        with closing(ServiceMaps(current(daemon.bpffs), family)) as maps:
            maps.apply(TableWrites(backend_states=dict.fromkeys(numbers, (int(BackendState.GONE), 0))))
        assert not aborted(stream)
        daemon.start()
        until(lambda: aborted(stream), "the connection to end")
        until(lambda: aborted(datagrams), "the UDP socket to end")


def test_sockets_led_by_programs_that_did_not_note_it_end_with_their_backend(world, form, protocol):
    """An earlier version's programs had no such map. Other sockets were led to the id's former backend."""
    web1, web2, _ = world.webs
    service, daemon, family = world.service([web1]), world.daemon, FORMS[form]
    with connected(world, service, form, protocol) as handle, ExitStack() as others:
        daemon.stop()
        numbers = [row["id"] for row in daemon.json("backends") if row["family"] == family]
        for epochs in range(1, 9):
            other = others.enter_context(connected(world, service, form, protocol))
            with stored(world, other, form, "connections") as peer:
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


def mode_of(world):
    return world.daemon.json("status")["daemon"]["settings"]["mode"]


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
