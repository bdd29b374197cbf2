"""The socket fast path: what an application sees of its own sockets, and what the backend and the link see."""

from __future__ import annotations

import errno
import json
import time
from contextlib import contextmanager

import pytest
from worlds import TCP_PORT, UDP_PORT, in_worlds

from kproxy_ebpf.lab.manifests import EndpointSpec
from kproxy_ebpf.lab.traffic import KINDS, ask, echo, family_of, read_answer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

pytestmark = in_worlds("hybrid")

FORMS = {"ipv4": 4, "ipv6": 6, "mapped": 4}


@pytest.fixture(params=FORMS)
def form(request):
    """How the application writes an address; "mapped" is IPv4 on an IPv6 socket."""
    return request.param


def written(address, form):
    return f"::ffff:{address}" if form == "mapped" else address


def socket_of(place, address, protocol=Protocol.TCP):
    handle = place.socket(family_of(address), KINDS[protocol])
    handle.settimeout(2)
    return handle


def verdicts(world):
    return {name: count["packets"] for name, count in world.daemon.json("status")["verdicts"].items()}


@contextmanager
def counted(world, **expected):
    """Exactly so many verdicts of these kinds are added in the block, by node1's programs."""
    before = verdicts(world)
    yield
    after = verdicts(world)
    assert {name: after[name] - before[name] for name in expected} == expected


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_connection_is_translated_once_and_shows_the_vip(world, form, protocol):
    service = world.service(world.webs)
    vip = written(service.vip(FORMS[form]), form)
    port = {Protocol.TCP: TCP_PORT, Protocol.UDP: UDP_PORT}[protocol]
    with (
        counted(world, connected=1, balanced=0, translated=0, reversed=0),
        socket_of(world.client, vip, protocol) as handle,
    ):
        handle.connect((vip, port))
        assert handle.getpeername()[:2] == (vip, port)
        handle.send(b"?") if protocol is Protocol.UDP else None
        answer = read_answer(handle, 0)
        assert answer.client == world.client.address(FORMS[form])
        assert answer.server in {pod.name for pod in world.webs}
        if protocol is Protocol.UDP:
            handle.send(b"?")
            assert handle.recvfrom(1000)[1][:2] == (vip, port)


def test_refused_at_once(world, form):
    service = world.service([])
    other = world.service(world.webs)
    for vip, port in ((service.vip(FORMS[form]), TCP_PORT), (other.vip(FORMS[form]), 4711)):
        with socket_of(world.client, written(vip, form)) as handle:
            assert handle.connect_ex((written(vip, form), port)) == errno.ECONNREFUSED


def test_datagrams_of_one_socket_to_several_vips(world, form):
    services = [world.service([pod]) for pod in world.webs]
    vips = [written(service.vip(FORMS[form]), form) for service in services]
    with socket_of(world.client, vips[0], Protocol.UDP) as handle, counted(world, connected=3, balanced=0):
        for number in range(9):
            pod, vip = world.webs[number % 3], vips[number % 3]
            handle.sendto(b"?", (vip, UDP_PORT))
            data, source = handle.recvfrom(1000)
            assert source[:2] == (vip, UDP_PORT)
            assert f'"{pod.name}"'.encode() in data


def terminating(pod):
    return [EndpointSpec(address, ready=False, serving=True, terminating=True) for address in (pod.ip4, pod.ip6)]


def aborted(handle):
    """Whether the application has been told at once; the socket's time-out counts as no."""
    handle.settimeout(0.05)
    try:
        handle.recv(100)
    except ConnectionAbortedError:
        return True
    except TimeoutError:
        pass
    return False


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_socket_whose_backend_is_gone_is_told_at_once(world, form, protocol):
    web1, web2, _ = world.webs
    service = world.service([web1])
    other = world.service([web1])
    with connected(world, service, form, protocol) as handle, connected(world, other, form, protocol) as bystander:
        service.endpoints([*terminating(web1), web2])
        until(lambda: server_of(world, service, form, protocol) == "web2", "new connections to go to web2")
        assert not aborted(handle), "its pod still serves"
        service.endpoints([web2])
        until(lambda: aborted(handle), "the socket to end")
        assert not aborted(bystander), "the other Service has the endpoint still"


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_of_an_endpoint_that_left_while_ready_only_udp_ends(world, form, protocol):
    web1, web2, _ = world.webs
    service = world.service([web1])
    with connected(world, service, form, protocol) as handle:
        service.endpoints([web2])
        if protocol is Protocol.UDP:
            until(lambda: aborted(handle), "the socket to end")
        else:
            until(lambda: server_of(world, service, form, protocol) == "web2", "new connections to go to web2")
            time.sleep(0.3)
            handle.settimeout(2)
            echo(handle, b"still with web1")


def test_unconnected_udp_moves_with_the_next_datagram(world, form):
    web1, web2, _ = world.webs
    service = world.service([web1])
    vip = written(service.vip(FORMS[form]), form)
    with socket_of(world.client, vip, Protocol.UDP) as handle:

        def server():
            handle.sendto(b"?", (vip, UDP_PORT))
            data, source = handle.recvfrom(1000)
            assert source[:2] == (vip, UDP_PORT)
            return json.loads(data.splitlines()[0])["server"]

        assert server() == "web1"
        service.endpoints([web2])
        until(lambda: server() == "web2", "datagrams to reach web2")


@contextmanager
def connected(world, service, form, protocol):
    """A socket that has been answered through the VIP."""
    vip = written(service.vip(FORMS[form]), form)
    with socket_of(world.client, vip, protocol) as handle:
        handle.connect((vip, {Protocol.TCP: TCP_PORT, Protocol.UDP: UDP_PORT}[protocol]))
        handle.send(b"?") if protocol is Protocol.UDP else None
        read_answer(handle, 0)
        yield handle


def server_of(world, service, form, protocol):
    port = {Protocol.TCP: TCP_PORT, Protocol.UDP: UDP_PORT}[protocol]
    return ask(world.client, written(service.vip(FORMS[form]), form), port, protocol).server
