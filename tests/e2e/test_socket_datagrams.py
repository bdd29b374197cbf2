"""What a UDP socket sees of VIPs and backends, connected or not. Datagrams are the link's, with and without sockets."""

from __future__ import annotations

import ctypes
import socket
import struct
from contextlib import ExitStack, closing

import pytest
from sockets import FORMS, asked, asked_by_datagram, connected, counted, mode_of, socket_of, vip_of, written
from worlds import UDP_PORT, in_worlds

from kproxy_ebpf.lab.traffic import EchoServer, await_answer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

pytestmark = in_worlds("tcx", "hybrid")

TARGET_PORT = 5353
VIPS = 10
WORKERS = 4
IP_RECVERR, IPV6_RECVERR = 11, 25
RECVERR = {4: (socket.IPPROTO_IP, IP_RECVERR), 6: (socket.IPPROTO_IPV6, IPV6_RECVERR)}
ORIGIN_ICMP, ORIGIN_ICMP6 = 2, 3
FORBIDDEN = {"ipv4": "255.255.255.255", "ipv6": "fe80::1", "mapped": "::ffff:255.255.255.255"}
"""No connect() may name these: a broadcast without SO_BROADCAST, a link-local address without its link."""


@pytest.fixture(scope="module")
def service(world):
    return world.service(world.webs)


def test_datagrams_of_one_socket_to_several_vips(world, form):
    services = [world.service([pod]) for pod in world.webs]
    vips = [vip_of(service, form) for service in services]
    with socket_of(world.client, vips[0], Protocol.UDP) as handle, counted(world, connected=0, balanced=3):
        for number in range(9):
            vip = vips[number % 3]
            assert asked_by_datagram(handle, vip) == (world.webs[number % 3].name, (vip, UDP_PORT))


def test_datagrams_of_one_socket_to_one_vip_go_to_one_backend(world, service, form):
    vip = vip_of(service, form)
    with socket_of(world.client, vip, Protocol.UDP) as handle:
        assert len({asked_by_datagram(handle, vip) for _ in range(20)}) == 1


def test_two_vips_of_one_backend_are_told_apart(world, form):
    vips = [vip_of(world.service(world.webs[:1]), form) for _ in range(2)]
    with socket_of(world.client, vips[0], Protocol.UDP) as handle, counted(world, connected=0, balanced=2):
        for _ in range(3):
            for vip in vips:
                assert asked_by_datagram(handle, vip) == ("web1", (vip, UDP_PORT))


def test_answers_under_way_come_from_the_vip_that_was_asked(world, form):
    """Both VIPs have one backend, and both are asked before any answer is read."""
    vips = [vip_of(world.service(world.webs[:1]), form) for _ in range(2)]
    with socket_of(world.client, vips[0], Protocol.UDP) as handle:
        for number in range(20):
            handle.sendto(str(number).encode(), (vips[number % 2], UDP_PORT))
        for _ in range(20):
            data, source = handle.recvfrom(1000)
            assert source[:2] == (vips[int(data.splitlines()[1]) % 2], UDP_PORT)


def test_workers_that_share_a_port_see_the_vip_that_was_asked(world, form):
    """The kernel gives an answer to any of the sockets of one port: one may get what another has asked for."""
    vips = [vip_of(world.service(world.webs[:1]), form) for _ in range(WORKERS)]
    own, port = written(world.client.address(FORMS[form]), form), 21600 + list(FORMS).index(form)
    with ExitStack() as stack:
        workers = [stack.enter_context(socket_of(world.client, own, Protocol.UDP)) for _ in vips]
        for worker in workers:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind((own, port))
        for number, (worker, vip) in enumerate(zip(workers, vips, strict=True)):
            worker.sendto(str(number).encode(), (vip, UDP_PORT))
        seen = {}

        def received():
            for worker in workers:
                worker.settimeout(0.05)
                try:
                    data, source = worker.recvfrom(1000)
                except TimeoutError:
                    continue
                seen[int(data.splitlines()[1])] = source[:2]
            return len(seen) == WORKERS

        until(received, "every answer")
    assert seen == {number: (vip, UDP_PORT) for number, vip in enumerate(vips)}


def test_the_error_queue_names_the_vip(world, family):
    """Nobody listens behind one VIP, and the other has no endpoint: one error is translated, the other our own."""
    deaf = world.service(world.webs[:1], {"deaf": (90, "UDP", 9090)}, wait=False)
    until(lambda: "deaf" in str(world.daemon.json("services")), "the Service to be in force")
    for vip, port in ((deaf.vip(family), 90), (world.service([]).vip(family), UDP_PORT)):
        with socket_of(world.client, vip, Protocol.UDP) as handle:
            handle.setsockopt(*RECVERR[family], 1)
            handle.sendto(b"?", (vip, port))
            _, ancillary, _, asked_for = until(lambda handle=handle: from_error_queue(handle), "an error")
            assert asked_for[:2] == (vip, port)
            assert {data[4] for _, _, data in ancillary} == {{4: ORIGIN_ICMP, 6: ORIGIN_ICMP6}[family]}


def from_error_queue(handle):
    try:
        return handle.recvmsg(100, 200, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        return None


def test_a_backend_itself_and_its_vip_are_told_apart(world, form):
    vip, own = vip_of(world.service(world.webs[:1]), form), written(world.webs[0].address(FORMS[form]), form)
    with socket_of(world.client, vip, Protocol.UDP) as handle:
        for _ in range(3):
            assert asked_by_datagram(handle, vip) == ("web1", (vip, UDP_PORT))
            assert asked_by_datagram(handle, own, TARGET_PORT) == ("web1", (own, TARGET_PORT))


def test_many_vips_of_one_socket(world, form):
    far = world.lab.nodes["node2"].pods["far"]
    ports = {f"p{number}": (5000 + number, "UDP", 7000 + number) for number in range(VIPS)}
    server = EchoServer(far, "many")
    for _, _, target in ports.values():
        server.listen(far.address(FORMS[form]), target, Protocol.UDP)
    with closing(server):
        vip = vip_of(world.service([far], ports, wait=False), form)
        await_answer(world.client, vip, 5000 + VIPS - 1, Protocol.UDP)
        with socket_of(world.client, vip, Protocol.UDP) as handle, counted(world, connected=0, balanced=VIPS):
            for port in [*range(5000, 5000 + VIPS)] * 2:
                assert asked_by_datagram(handle, vip, port) == ("many", (vip, port))


def test_a_connected_socket_talks_to_the_vip(world, service, form):
    vip = vip_of(service, form)
    with connected(world, service, form, Protocol.UDP) as handle, counted(world, connected=0, balanced=0):
        assert handle.getpeername()[:2] == (vip, UDP_PORT)
        handle.send(b"?")
        assert handle.recvfrom(1000)[1][:2] == (vip, UDP_PORT)
        answers = {asked_by_datagram(handle, vip) for _ in range(10)}
        assert len(answers) == 1
        assert answers.pop()[1] == (vip, UDP_PORT)


def test_connecting_twice_keeps_the_backend(world, service, form):
    vip = vip_of(service, form)
    with connected(world, service, form, Protocol.UDP) as handle:
        before = asked(handle, Protocol.UDP)
        for _ in range(10):
            handle.connect((vip, UDP_PORT))
            after = asked(handle, Protocol.UDP)
            assert (after.server, after.client_port) == (before.server, before.client_port)


def test_a_second_connect_that_fails_changes_nothing(world, service, form):
    vip = vip_of(service, form)
    with connected(world, service, form, Protocol.UDP) as handle:
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the family
            handle.connect((FORBIDDEN[form], UDP_PORT))
        assert handle.getpeername()[:2] == (vip, UDP_PORT)
        handle.send(b"?")
        assert handle.recvfrom(1000)[1][:2] == (vip, UDP_PORT)


def test_a_backend_that_goes_is_not_noticed(world, form):
    """Socket and source port stay, and the flow moves: no error, no matter whether the socket is connected."""
    web1, web2, _ = world.webs
    service = world.service([web1])
    vip = vip_of(service, form)
    with (
        connected(world, service, form, Protocol.UDP) as handle,
        socket_of(world.client, vip, Protocol.UDP) as unconnected,
    ):
        ports = handle.getsockname()[1], unconnected.getsockname()[1]
        assert asked_by_datagram(unconnected, vip) == ("web1", (vip, UDP_PORT))
        service.endpoints([web2])
        until(lambda: asked(handle, Protocol.UDP).server == "web2", "datagrams to reach web2")
        assert asked_by_datagram(unconnected, vip) == ("web2", (vip, UDP_PORT))
        assert handle.getpeername()[:2] == (vip, UDP_PORT)
        assert ports[0] == handle.getsockname()[1] == asked(handle, Protocol.UDP).client_port


def test_a_service_that_gets_its_first_endpoint_answers_the_same_socket(world, form):
    service = world.service([])
    vip = vip_of(service, form)
    with socket_of(world.client, vip, Protocol.UDP) as handle:
        handle.connect((vip, UDP_PORT))
        handle.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            handle.recv(100)
        service.endpoints(world.webs[:1])

        def answered():
            try:
                return asked(handle, Protocol.UDP).server == "web1"
            except ConnectionRefusedError:
                return False

        until(answered, "the socket to be answered")


def test_a_refused_datagram_fails_none_of_an_unconnected_socket(world, form):
    vip = vip_of(world.service([]), form)
    with socket_of(world.client, vip, Protocol.UDP) as handle:
        for _ in range(3):
            assert handle.sendto(b"?", (vip, UDP_PORT)) == 1


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


def test_a_socket_whose_connection_was_dissolved_shows_who_answers(world, form):
    """An IPv6 socket asks the VIP again: Linux lets it hear nobody but the peer that it had."""
    service, own = world.service(world.webs[:1]), written(world.webs[0].address(FORMS[form]), form)
    asks = (vip_of(service, form), UDP_PORT) if form == "ipv6" else (own, TARGET_PORT)
    with connected(world, service, form, Protocol.UDP) as handle:
        nobody = struct.pack("=H26x", socket.AF_UNSPEC)
        assert ctypes.CDLL(None).connect(handle.fileno(), nobody, len(nobody)) == 0
        assert asked_by_datagram(handle, *asks) == ("web1", asks)


def test_mode_socket_leaves_datagrams_to_kube_proxy(world, service, form):
    """On these nodes there is none: nobody answers."""
    try:
        world.switch(mode="socket")
        until(lambda: mode_of(world) == "socket", "mode socket")
        vip = vip_of(service, form)
        with socket_of(world.client, vip, Protocol.UDP) as handle, counted(world, connected=0, balanced=0):
            handle.settimeout(0.3)
            handle.sendto(b"?", (vip, UDP_PORT))
            with pytest.raises(TimeoutError):
                handle.recv(100)
    finally:
        world.switch()
        until(lambda: mode_of(world) == world.settings["mode"], "the world's mode")
