"""Bulk data through a VIP, whatever the offloads and the MTU of the path, and the ICMP errors that this takes."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from worlds import BULK, connected

from kproxy_ebpf.lab.traffic import ask, family_of, opened, transfer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

GIB_BLOCKS = 1024
PORTS = {"bulk": BULK}
SMALL_MTU = 1300
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_RECVERR, IPV6_RECVERR = 10, 2, 11, 25
SOCK_EXTENDED_ERR = struct.Struct("=IBBBBII")  # linux/errqueue.h: errno, origin, type, code, pad, info, data


@pytest.fixture(scope="module")
def near(world):
    return world.service([world.webs[0]], PORTS | {"http": (80, "TCP", 8080), "dns": (53, "UDP", 5353)})


@contextmanager
def offloads(world, pods, *, on: bool) -> Iterator[None]:
    def switch(state: bool) -> None:
        for pod in pods:
            pod.offloads("eth0", on=state)
            pod.node.offloads(pod.host_link, on=state)
        for node in {pod.node for pod in pods}:
            node.offloads("eth0", on=state)

    switch(on)
    try:
        yield
    finally:
        switch(True)


@pytest.mark.parametrize("on", [True, False], ids=["64k-segments", "mtu-sized"])
def test_one_gibibyte_arrives_intact_in_both_directions(world, near, family, on):
    server = world.webs[0]
    with (
        offloads(world, [world.client, server], on=on),
        connected(world.client, near.vip(family), server) as (outgoing, incoming),
    ):
        transfer(outgoing, incoming, GIB_BLOCKS)
        transfer(incoming, outgoing, GIB_BLOCKS)


@pytest.mark.parametrize("on", [True, False], ids=["64k-segments", "mtu-sized"])
def test_a_smaller_mtu_behind_the_backend_is_discovered(world, family, on):
    node2 = world.lab.nodes["node2"]
    far = node2.pod(f"narrow{family}{int(on)}")
    world.serve(far)
    service = world.service([far], PORTS | {"http": (80, "TCP", 8080)}, wait=False)
    until(lambda: ask(world.client, service.vip(family), 80).server == far.name, "the Service to be in force")
    node2.ip(f"link set {far.host_link} mtu {SMALL_MTU}")
    with (
        offloads(world, [world.client], on=on),
        connected(world.client, service.vip(family), far) as (outgoing, incoming),
    ):
        transfer(outgoing, incoming, 4)
    route = world.client.run(["ip", "route", "get", service.vip(family)]).stdout
    assert re.search(rf"\bmtu {SMALL_MTU}\b", route), f"the client has not learned the MTU of the path: {route}"


def test_a_datagram_too_large_for_the_path_is_reported_at_the_client(world, family):
    node2 = world.lab.nodes["node2"]
    far = node2.pod(f"udp{family}")
    world.serve(far)
    service = world.service([far])
    node2.ip(f"link set {far.host_link} mtu {SMALL_MTU}")
    with opened(world.client, service.vip(family), 53, Protocol.UDP) as handle:
        level = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}[family]
        option = {4: IP_MTU_DISCOVER, 6: 23}[family]
        handle.setsockopt(level, option, IP_PMTUDISC_DO)
        handle.send(b"x" * 1400)

        def told() -> bool:
            try:
                handle.send(b"x" * 1400)
            except OSError as error:
                return error.errno == 90  # EMSGSIZE
            return False

        until(told, "EMSGSIZE")
        until(lambda: handle.send(b"x" * 1000), "the errors of what was sent before to be told")
        assert handle.recv(2000).endswith(b"x" * 1000)


def test_an_icmp_error_seems_to_come_from_the_vip(world, near, family):
    """The backend sends a port unreachable, since nobody listens on a target port of the Service."""
    service = world.service([world.webs[0]], {"deaf": (54, "UDP", 5454)})
    level, option = {4: (socket.IPPROTO_IP, IP_RECVERR), 6: (socket.IPPROTO_IPV6, IPV6_RECVERR)}[family]
    with world.client.socket(family_of(service.vip(family)), socket.SOCK_DGRAM) as handle:
        handle.setsockopt(level, option, 1)
        handle.settimeout(2)
        handle.connect((service.vip(family), 54))
        handle.send(b"anyone?")
        with pytest.raises(ConnectionRefusedError):
            handle.recv(100)
        data, ancillary, _, destination = until(
            lambda: handle.recvmsg(100, 512, socket.MSG_ERRQUEUE), "the error queue to be filled"
        )
    assert data == b"anyone?"
    assert destination[:2] == (service.vip(family), 54)
    error = ancillary[0][2]
    assert SOCK_EXTENDED_ERR.unpack_from(error)[0] == 111  # ECONNREFUSED
    offender = error[SOCK_EXTENDED_ERR.size :]
    packed = offender[4:8] if family == 4 else offender[8:24]
    assert socket.inet_ntop(family_of(service.vip(family)), packed) == service.vip(family)
