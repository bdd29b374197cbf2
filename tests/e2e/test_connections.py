"""Connections over time: what becomes of established ones and of new ones as endpoints change (SEMANTICS)."""

from __future__ import annotations

import socket
import struct
from collections import deque
from contextlib import contextmanager
from itertools import cycle, islice

import pytest
import yaml
from worlds import TCP_PORT, VARIANTS, in_force, in_worlds

from kproxy_ebpf.lab.manifests import EndpointSpec
from kproxy_ebpf.lab.traffic import ask, echo, family_of, opened, read_answer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

SOURCE_PORT = 21000  # below those that the kernel hands out
FEW_PORTS = "45000 45019"
CONNECTIONS, OPEN_AT_ONCE = 400, 6


def terminating(pod):
    return both(pod, ready=False, serving=True, terminating=True)


def not_ready(pod):
    return both(pod, ready=False)


def both(pod, **conditions):
    return [EndpointSpec(address, **conditions) for address in (pod.ip4, pod.ip6)]


@contextmanager
def established(world, service, family, protocol=Protocol.TCP):
    """A connection through the VIP that has been answered, and by whom."""
    with opened(world.client, service.vip(family), {Protocol.TCP: 80, Protocol.UDP: 53}[protocol], protocol) as handle:
        yield handle, says(handle, protocol)


def says(handle, protocol=Protocol.TCP):
    if protocol is Protocol.UDP:
        handle.send(b"?")
    return read_answer(handle, 0).server


def new_connections_go_to(world, service, family, names):
    """Wait until new connections, of either protocol, go to exactly these servers."""

    def settled():
        return {ask(world.client, service.vip(family), 80).server for _ in range(20)} == names

    until(settled, f"new connections to go to {names}")


def test_a_terminating_endpoint_keeps_what_it_has_and_gets_nothing_new(world, family):
    web1, web2, _ = world.webs
    service = world.service([web1])
    with established(world, service, family) as (handle, server):
        assert server == "web1"
        service.endpoints([*terminating(web1), web2])
        new_connections_go_to(world, service, family, {"web2"})
        echo(handle, b"still with web1")


def test_an_endpoint_that_is_not_ready_keeps_what_it_has(world, family):
    web1, web2, _ = world.webs
    service = world.service([web1])
    with established(world, service, family) as (handle, _):
        service.endpoints([*not_ready(web1), web2])
        new_connections_go_to(world, service, family, {"web2"})
        echo(handle, b"still with web1")


def test_terminating_endpoints_serve_when_no_other_does(world, family):
    web1 = world.webs[0]
    service = world.service(terminating(web1))
    assert ask(world.client, service.vip(family), 80).server == "web1"


def test_tcp_to_a_pod_that_is_gone_is_reset(world, family):
    web1, web2, _ = world.webs
    service = world.service([web1])
    with established(world, service, family) as (handle, _):
        service.endpoints([*terminating(web1), web2])
        new_connections_go_to(world, service, family, {"web2"})
        service.endpoints([web2])

        def reset():
            try:
                echo(handle, b"anybody there?")
            except ConnectionResetError:
                return True
            return False

        until(reset, "the connection to be reset")
        mine = f"default/{service.name}:http", handle.getsockname()[1]
        rows = world.daemon.json("flows")
        [flow] = [row for row in rows if (row["service"], int(row["client"].rpartition(":")[2])) == mine]
        assert flow["state"] == "closed"


def test_tcp_to_an_endpoint_that_left_while_ready_goes_on(world, family):
    web1, web2, _ = world.webs
    service = world.service([web1])
    with established(world, service, family) as (handle, _):
        service.endpoints([web2])
        new_connections_go_to(world, service, family, {"web2"})
        echo(handle, b"still with web1")


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP], ids=["tcp", "udp"])
def test_what_changes_no_endpoint_changes_no_connection(world, family, protocol):
    """Another order, another slice for some of them, labels and annotations: all is as it was."""
    daemon = world.daemon
    service = world.service(world.webs)
    with established(world, service, family, protocol) as (handle, server):
        before = writes(daemon)
        with in_force(daemon, slices=4):
            for path in daemon.manifests.folder.glob(f"endpointslice-{service.name}-*"):
                split(daemon.manifests, path)
        assert writes(daemon) == before
        if protocol is Protocol.UDP:
            assert says(handle, protocol) == server
        else:
            echo(handle, b"still there")
    service.remove()


def split(manifests, path):
    """Edit a slice, turn its endpoints round, and move all but one of them to a slice of their own."""
    whole = yaml.safe_load(path.read_text())
    metadata = whole["metadata"] | {"annotations": {"edited": "yes"}}
    metadata["labels"]["edited"] = "yes"
    *others, last = reversed(whole["endpoints"])
    twin = metadata | {"name": f"{metadata['name']}-twin"}
    manifests.write(f"{path.stem}-twin", whole | {"metadata": twin, "endpoints": others})
    manifests.write(path.stem, whole | {"metadata": metadata, "endpoints": [last]})


def writes(daemon):
    return {name: value for name, value in daemon.metrics().items() if "map_writes_total" in name}


@pytest.mark.parametrize("last_words", [None, terminating], ids=["ready", "terminating"])
def test_udp_moves_on_when_its_endpoint_is_gone(world, family, last_words):
    web1, web2, _ = world.webs
    service = world.service([web1])
    with established(world, service, family, Protocol.UDP) as (handle, server):
        assert server == "web1"
        if last_words:
            service.endpoints([*last_words(web1), web2])
            new_connections_go_to(world, service, family, {"web2"})
        service.endpoints([web2])
        until(lambda: says(handle, Protocol.UDP) == "web2", "the same socket to reach web2")


def test_udp_to_a_service_without_endpoints_works_once_it_has_one(world, family):
    service = world.service([])
    with opened(world.client, service.vip(family), 53, Protocol.UDP) as handle:
        handle.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            handle.recv(100)
        service.endpoints(world.webs[:1])
        until(lambda: says(handle, Protocol.UDP) == "web1", "the same socket to reach web1")


def test_the_port_of_a_closed_connection_is_usable_at_once(world, family):
    service = world.service(world.webs)
    for _ in range(20):
        with opened(world.client, service.vip(family), 80, source_port=SOURCE_PORT) as handle:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a RST
            echo_greeting = read_answer(handle, 0)
        assert echo_greeting.client_port == SOURCE_PORT


def test_a_udp_service_that_is_removed_ends_its_flows(world, family):
    service = world.service(world.webs[:1])
    with established(world, service, family, Protocol.UDP) as (handle, _):
        service.remove()
        handle.settimeout(0.3)

        def ended():  # the router's "no route" is no reason for the kernel to tell a UDP socket
            try:
                says(handle, Protocol.UDP)
            except TimeoutError:
                return True
            return False

        until(ended, "datagrams to fall through to the node")


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
def test_the_client_port_of_a_connection_to_the_vip_is_free_for_one_to_the_backend_itself(world, family, closed):
    """Their replies have the same addresses and ports: one must not be taken for the other's."""
    web = world.webs[0]
    service = world.service([web])
    source_port = SOURCE_PORT + 100 + 10 * family + closed
    with opened(world.client, service.vip(family), 80, source_port=source_port) as through_vip:
        read_answer(through_vip, 0)
        through_vip.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a RST
        if closed:
            through_vip.close()
        answer = ask(world.client, web.address(family), 8080, source_port=source_port)
        assert answer.server == web.name
        if not closed:
            echo(through_vip, b"still through the VIP")


def test_a_connection_through_the_vip_with_the_port_of_an_open_direct_one(world, family):
    """Here the direct connection is first, as the socket path makes them all the time, without a flow."""
    web = world.webs[0]
    service = world.service([web])
    source_port = SOURCE_PORT + 200 + family
    with opened(world.client, web.address(family), 8080, source_port=source_port) as direct:
        read_answer(direct, 0)
        answer = ask(world.client, service.vip(family), 80, source_port=source_port)
        assert (answer.server, answer.client_port == source_port) == (web.name, False)
        echo(direct, b"still without the VIP")


@in_worlds(*VARIANTS)
def test_few_ports_for_connections_with_and_without_the_vip(world, family):
    """Each port is used again and again, by both kinds in turn and by both at once."""
    web = world.webs[0]
    service = world.service([web])
    targets = cycle([(service.vip(family), TCP_PORT), (web.address(family), 8080)])
    open_now: deque[socket.socket] = deque()
    with few_ports(world.client):
        try:
            for address, port in islice(targets, CONNECTIONS):
                handle = world.client.socket(family_of(address), socket.SOCK_STREAM)
                open_now.append(handle)
                handle.settimeout(2)
                handle.connect((address, port))
                assert read_answer(handle, 0).server == web.name
                echo(handle, b"and more")
                if len(open_now) == OPEN_AT_ONCE:
                    reset(open_now.popleft())
        finally:
            for handle in open_now:
                reset(handle)


@contextmanager
def few_ports(pod):
    """The kernel has only these to hand out in `pod`."""
    before = pod.read_sysctl("ipv4/ip_local_port_range")
    pod.sysctl({"ipv4/ip_local_port_range": FEW_PORTS})
    try:
        yield
    finally:
        pod.sysctl({"ipv4/ip_local_port_range": before})


def reset(handle):
    """Close with a RST: no TIME_WAIT keeps the port."""
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handle.close()
