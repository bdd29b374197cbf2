"""Datagrams that are larger than a packet, through Services: byte for byte, both ways."""

from __future__ import annotations

import random
import socket
from contextlib import contextmanager, suppress

import pytest
from worlds import BULK, connected, in_worlds

from kproxy_ebpf.lab.traffic import family_of, opened, transfer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

pytestmark = in_worlds("tcx", "bridge", "hybrid", "redirect")

PORTS = {"large": (7000, "UDP", 7001)}
LENGTHS = (1473, 4000, 60_000, 65_507)  # the last is the largest that IPv4 can carry


def blob(length):
    return random.Random(length).randbytes(length)


@contextmanager
def server_at(pod, family, port=7001):
    """A socket on the pod's address, on which the test answers."""
    with pod.socket(family_of(pod.address(family)), socket.SOCK_DGRAM) as handle:
        handle.bind((pod.address(family), port))
        handle.settimeout(5)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        yield handle


@pytest.fixture(params=["near", "far"])
def server(world, request):
    return world.webs[0] if request.param == "near" else world.lab.nodes["node2"].pods["far"]


@pytest.fixture
def service(world, server):
    service = world.service([server], PORTS, wait=False)
    yield service
    service.remove()


def asked(world, service, family, server, question, answer):
    """Send a question through the VIP and an answer back; both have to arrive whole, and the answer from the VIP."""
    with opened(world.client, service.vip(family), 7000, Protocol.UDP, timeout=5) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.send(question)
        data, peer = server.recvfrom(1 << 16)
        assert data == question
        assert peer[0] == world.client.address(family)
        server.sendto(answer, peer)
        assert client.recv(1 << 16) == answer


def in_force(world, service, family, server):
    def answers():
        with suppress(ConnectionRefusedError):
            asked(world, service, family, server, b"?", b"!")
            return True

    server.settimeout(0.5)
    until(answers, f"{service.name} to be in force")
    server.settimeout(5)


@pytest.mark.parametrize("length", LENGTHS)
def test_questions_and_answers_of_any_length(world, service, server, family, length):
    with server_at(server, family) as handle:
        in_force(world, service, family, handle)
        asked(world, service, family, handle, b"small", blob(length))
        asked(world, service, family, handle, blob(length), b"small")
        asked(world, service, family, handle, blob(length), blob(length))


def test_many_at_once(world, service, server, family):
    """Their fragments go through one another, and the answers, too."""
    with server_at(server, family) as handle:
        in_force(world, service, family, handle)
        clients = [world.client.socket(family_of(service.vip(family)), socket.SOCK_DGRAM) for _ in range(20)]
        for number, client in enumerate(clients):
            client.settimeout(5)
            client.connect((service.vip(family), 7000))
            client.send(blob(4000 + number))
        for _ in clients:
            data, peer = handle.recvfrom(1 << 16)
            handle.sendto(data, peer)
        for number, client in enumerate(clients):
            assert client.recv(1 << 16) == blob(4000 + number)
            client.close()


def test_a_large_question_is_refused_like_a_small_one(world, family):
    service = world.service([], PORTS)
    with opened(world.client, service.vip(family), 7000, Protocol.UDP) as client:
        client.send(blob(4000))
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)


def test_dig_and_dnsmasq(world, service, server, family, tmp_path):
    """The answer that EDNS lets through in one datagram: 3,600 bytes."""
    texts = [f"--txt-record=large.test,{'x' * 200}{number}" for number in range(16)]
    where = ["--port=7001", f"--listen-address={server.address(family)}", "--bind-interfaces"]
    words = ["--no-resolv", "--no-hosts", "--edns-packet-max=4096", "--user=root", f"--pid-file={tmp_path / 'pid'}"]
    process = server.popen(["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", *where, *words, *texts])
    try:
        question = ["dig", f"@{service.vip(family)}", "-p", "7000", "+notcp", "+ignore", "+tries=1", "+time=1"]
        until(lambda: "NOERROR" in world.client.run([*question, "large.test", "TXT"], check=False).stdout, "DNS")
        told = world.client.run([*question, "+bufsize=4096", "large.test", "TXT"]).stdout
        assert "flags: qr aa rd ra;" in told, "it is not truncated"
        assert all(f"{'x' * 200}{number}" in told for number in range(16))
    finally:
        server.end(process)


def test_ping(world, service, server, family):
    """It is for no Service, and reaches the pod as before, while datagrams of the same pod are translated."""
    with server_at(server, family) as handle:
        in_force(world, service, family, handle)
        asked(world, service, family, handle, blob(4000), blob(4000))
        ping = ["ping", "-c", "3", "-i", "0.2", "-W", "2", "-s", "4000", server.address(family)]
        assert " 0% packet loss" in world.client.run(ping).stdout


def test_tcp_that_routers_cut(world):
    """It lets routers do so (no Linux does by default), and the way back from the other node is narrow."""
    far, node2 = world.lab.nodes["node2"].pods["far"], world.lab.nodes["node2"]
    service = world.service([far], {"bulk": BULK})
    route = f"route change {world.node.pod_cidr4} via {world.node.ip4}"
    for pod in (far, world.client):
        pod.sysctl({"ipv4/ip_no_pmtu_disc": "1"})
    before = cut(node2)
    node2.ip(f"{route} mtu lock 1000")
    try:
        with connected(world.client, service.vip4, far) as (client, server):
            transfer(server, client, 1)
            transfer(client, server, 1)
        assert cut(node2) - before > 100
    finally:
        node2.ip(route)
        for pod in (far, world.client):
            pod.sysctl({"ipv4/ip_no_pmtu_disc": "0"})


def cut(node):
    """How many packets the node has cut."""
    names, values = (line.split() for line in node.run(["grep", "^Ip:", "/proc/net/snmp"]).stdout.splitlines())
    return int(values[names.index("FragOKs")])
