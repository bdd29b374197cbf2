"""The socket fast path for datagrams: what a UDP socket sees of VIPs and backends, connected or not."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest
from sockets import (
    FORMS,
    asked,
    asked_by_datagram,
    connected,
    counted,
    datagrams_since,
    silent,
    socket_of,
    vip_of,
    written,
)
from worlds import UDP_PORT, in_worlds

from kproxy_ebpf.datapath.maps.packing import now_seconds
from kproxy_ebpf.lab.traffic import EchoServer, await_answer
from kproxy_ebpf.model.services import Protocol

pytestmark = [in_worlds("hybrid"), pytest.mark.usefixtures("attached_long_ago")]

TARGET_PORT = 5353
VIPS_OF_A_SOCKET = 8


@pytest.fixture(scope="module")
def service(world):
    return world.service(world.webs)


def test_datagrams_of_one_socket_to_several_vips(world, form):
    services = [world.service([pod]) for pod in world.webs]
    vips = [vip_of(service, form) for service in services]
    with socket_of(world.client, vips[0], Protocol.UDP) as handle, counted(world, connected=3, balanced=0):
        for number in range(9):
            vip = vips[number % 3]
            assert asked_by_datagram(handle, vip) == (world.webs[number % 3].name, (vip, UDP_PORT))


def test_datagrams_of_one_socket_to_one_vip_go_to_one_backend(world, service, form):
    vip = vip_of(service, form)
    with socket_of(world.client, vip, Protocol.UDP) as handle:
        assert len({asked_by_datagram(handle, vip) for _ in range(20)}) == 1


def test_two_vips_of_one_backend_are_told_apart(world, form):
    vips = [vip_of(world.service(world.webs[:1]), form) for _ in range(2)]
    with socket_of(world.client, vips[0], Protocol.UDP) as handle, counted(world, connected=1, balanced=1):
        for _ in range(3):
            for vip in vips:
                assert asked_by_datagram(handle, vip) == ("web1", (vip, UDP_PORT))


def test_a_backend_itself_and_its_vip_are_told_apart(world, form):
    vip, own = vip_of(world.service(world.webs[:1]), form), written(world.webs[0].address(FORMS[form]), form)
    with socket_of(world.client, vip, Protocol.UDP) as handle:
        for _ in range(3):
            assert asked_by_datagram(handle, vip) == ("web1", (vip, UDP_PORT))
            assert asked_by_datagram(handle, own, TARGET_PORT) == ("web1", (own, TARGET_PORT))


def test_a_vip_that_a_socket_has_not_used_for_two_minutes_is_none_of_its_own(world, form):
    """Of two VIPs of one backend, the socket is led there for the one used first, before the silence and after."""
    first, second = (vip_of(world.service(world.webs[:1]), form) for _ in range(2))
    with socket_of(world.client, first, Protocol.UDP) as handle, counted(world, connected=2, balanced=2):
        for vip in (first, second):
            assert asked_by_datagram(handle, vip) == ("web1", (vip, UDP_PORT))
        silent(world, handle, form, 121)
        for vip in (second, first, second):
            assert asked_by_datagram(handle, vip) == ("web1", (vip, UDP_PORT))


def test_answers_keep_a_vip_in_use_and_come_from_the_backend_when_it_is_not(world, form):
    vip, own = vip_of(world.service(world.webs[:1]), form), written(world.webs[0].address(FORMS[form]), form)
    with socket_of(world.client, vip, Protocol.UDP) as handle:
        for _ in range(3):
            handle.sendto(b"?", (vip, UDP_PORT))
        for seconds, source in ((80, (vip, UDP_PORT)), (80, (vip, UDP_PORT)), (121, (own, TARGET_PORT))):
            silent(world, handle, form, seconds)
            assert handle.recvfrom(1000)[1][:2] == source


def test_more_vips_than_a_socket_remembers_are_left_to_the_link(world, form):
    far = world.lab.nodes["node2"].pods["far"]
    ports = {f"p{number}": (5000 + number, "UDP", 7000 + number) for number in range(VIPS_OF_A_SOCKET + 2)}
    server = EchoServer(far, "many")
    for _, _, target in ports.values():
        server.listen(far.address(FORMS[form]), target, Protocol.UDP)
    service = world.service([far], ports, wait=False)
    vip = vip_of(service, form)
    try:
        await_answer(world.client, vip, 5009, Protocol.UDP)
        with (
            socket_of(world.client, vip, Protocol.UDP) as handle,
            counted(world, connected=VIPS_OF_A_SOCKET, balanced=2),
        ):
            for port in [*range(5000, 5010), *range(5000, 5010)]:
                assert asked_by_datagram(handle, vip, port) == ("many", (vip, port))
    finally:
        server.close()


def test_what_may_be_in_mid_flow_stays_with_the_link(world, service, form):
    """The socket has sent before the programs came, and goes on sending."""
    vip = vip_of(service, form)
    try:
        datagrams_since(world, now_seconds() + 100)
        with socket_of(world.client, vip, Protocol.UDP) as old, socket_of(world.client, vip, Protocol.UDP) as new:
            with counted(world, connected=0, balanced=1):
                before = asked_by_datagram(old, vip)
            datagrams_since(world, 0)
            with counted(world, connected=1, balanced=0):
                assert {asked_by_datagram(old, vip) for _ in range(10)} == {before}
                asked_by_datagram(new, vip)
    finally:
        datagrams_since(world, 0)


def test_a_socket_that_is_connected_anew_forgets_the_old_peer(world, form):
    first, second = (world.service([pod]) for pod in world.webs[:2])
    own = written(world.webs[0].address(FORMS[form]), form)
    with connected(world, first, form, Protocol.UDP) as handle:
        handle.connect((vip_of(second, form), UDP_PORT))
        assert handle.getpeername()[0] == vip_of(second, form)
        assert asked(handle, Protocol.UDP).server == "web2"
        handle.connect((own, TARGET_PORT))
        assert handle.getpeername()[:2] == (own, TARGET_PORT)
        handle.send(b"?")
        assert handle.recvfrom(1000)[1][:2] == (own, TARGET_PORT)


def test_a_socket_that_is_connected_to_what_it_had_behind_a_vip_shows_who_answers(world, form):
    service, own = world.service(world.webs[:1]), written(world.webs[0].address(FORMS[form]), form)
    with socket_of(world.client, own, Protocol.UDP) as handle:
        assert asked_by_datagram(handle, vip_of(service, form)) == ("web1", (vip_of(service, form), UDP_PORT))
        handle.connect((own, TARGET_PORT))
        handle.send(b"?")
        assert handle.recvfrom(1000)[1][:2] == (own, TARGET_PORT)


def test_a_connected_socket_may_name_its_peer(world, service, form):
    with connected(world, service, form, Protocol.UDP) as handle:
        servers = {asked_by_datagram(handle, vip_of(service, form)) for _ in range(10)}
        assert len(servers) == 1
        assert servers.pop()[1] == (vip_of(service, form), UDP_PORT)


def test_a_socket_whose_connection_was_dissolved_shows_who_answers(world, form):
    service, own = world.service(world.webs[:1]), written(world.webs[0].address(FORMS[form]), form)
    with connected(world, service, form, Protocol.UDP) as handle:
        nobody = struct.pack("=H26x", socket.AF_UNSPEC)
        assert ctypes.CDLL(None).connect(handle.fileno(), nobody, len(nobody)) == 0
        assert asked_by_datagram(handle, own, TARGET_PORT) == ("web1", (own, TARGET_PORT))
