"""The socket fast path: what an application sees of its own sockets, and what the backend and the link see."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
from contextlib import closing

import pytest
from sockets import FORMS, PORTS, asked, connected, counted, server_of, socket_of, vip_of, written
from worlds import TCP_PORT, UDP_PORT, in_worlds

from kproxy_ebpf.contract.layouts import Settings
from kproxy_ebpf.datapath.generations.generation import current
from kproxy_ebpf.lab.daemon import COMMAND
from kproxy_ebpf.lab.manifests import EndpointSpec
from kproxy_ebpf.lab.traffic import EchoServer, ask, await_answer, echo, read_answer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

pytestmark = in_worlds("hybrid")

MSG_FASTOPEN = 0x20000000
IPPROTO_MPTCP = 262


@pytest.fixture(scope="module")
def service(world):
    return world.service(world.webs)


def test_a_connection_is_translated_once_and_shows_the_vip(world, service, form):
    with counted(world, connected=1, balanced=0, translated=0, reversed=0):
        vip, port = vip_of(service, form), TCP_PORT
        with socket_of(world.client, vip) as handle:
            handle.connect((vip, port))
            assert handle.getpeername()[:2] == (vip, port)
            answer = asked(handle)
            assert handle.getpeername()[:2] == (vip, port)
            assert answer.client == world.client.address(FORMS[form])
            assert answer.server in {pod.name for pod in world.webs}
            assert not [row for row in world.daemon.json("flows") if str(answer.client_port) in row["client"]]


def test_status_and_monitor_tell_of_sockets(world, service, family):
    status = world.daemon.command("status").stdout
    assert f"sockets     of {world.node.cgroup.folder}\n" in status
    assert world.daemon.json("status")["verdicts"]["connected"]["packets"] > 0
    process = world.node.popen(
        [COMMAND, "monitor", "--bpffs", world.daemon.bpffs, "-o", "json"], stdout=subprocess.PIPE
    )
    try:
        until(lambda: settings_of(world).events_level, "monitor to listen")
        with connected(world, service, {4: "ipv4", 6: "ipv6"}[family]):
            row = json.loads(process.stdout.readline())
    finally:
        world.node.end(process)
    assert (row["link"], row["direction"], row["verdict"]) == ("socket", "at_socket", "connected")
    assert service.vip(family) in row["destination"]
    assert row["to_destination"] != row["destination"]


def settings_of(world):
    with current(world.daemon.bpffs).map("settings") as settings:
        return Settings.from_buffer_copy(settings.lookup(bytes(4)))


def test_connections_are_spread(world, service, form, protocol):
    assert {server_of(world, service, form, protocol) for _ in range(40)} == {"web1", "web2", "web3"}


def test_a_backend_on_another_node_sees_the_pods_own_address(world, form, protocol):
    service = world.service([world.lab.nodes["node2"].pods["far"]])
    answer = ask(world.client, vip_of(service, form), PORTS[protocol], protocol)
    assert (answer.server, answer.client) == ("far", world.client.address(FORMS[form]))


def test_a_pod_reaches_itself(world, form):
    web = world.webs[0]
    service = world.service([web])
    answer = ask(web, vip_of(service, form), TCP_PORT)
    assert (answer.server, answer.client) == (web.name, web.address(FORMS[form]))


def test_refused_at_once(world, service, form):
    empty = world.service([])
    for vip, port, verdict in (
        (vip_of(empty, form), TCP_PORT, "rejected_no_backend"),
        (vip_of(service, form), 4711, "rejected_undefined_port"),
    ):
        with counted(world, **{verdict: 1}), socket_of(world.client, vip) as handle:
            assert handle.connect_ex((vip, port)) == errno.ECONNREFUSED


def test_a_socket_that_was_refused_connects_later(world, form):
    service = world.service([])
    vip = vip_of(service, form)
    with socket_of(world.client, vip) as handle:
        assert handle.connect_ex((vip, TCP_PORT)) == errno.ECONNREFUSED
        service.endpoints(world.webs[:1])
        until(lambda: server_of(world, service, form) == "web1", "the endpoint to be in force")
        handle.connect((vip, TCP_PORT))
        assert read_answer(handle, 0).server == "web1"
        assert handle.getpeername()[:2] == (vip, TCP_PORT)


def test_a_connection_that_failed_leaves_nothing(world, form):
    """The socket connects to the pod itself next, which must not be shown as the VIP."""
    web = world.webs[0]
    deaf = world.service([web], {"deaf": (90, "TCP", 9090)}, wait=False)
    vip, own = vip_of(deaf, form), written(web.address(FORMS[form]), form)
    until(lambda: "deaf" in str(world.daemon.json("services")), "the Service to be in force")
    with socket_of(world.client, vip) as handle:
        handle.settimeout(None)  # Python's time-out would make connect() two system calls
        assert handle.connect_ex((vip, 90)) == errno.ECONNREFUSED
        server = EchoServer(web, "late").listen(web.address(FORMS[form]), 9090)
        try:
            handle.connect((own, 9090))
            assert handle.getpeername()[:2] == (own, 9090)
            assert read_answer(handle, 0).server == "late"
        finally:
            server.close()


def test_fast_open_by_sendto(world, service, form):
    vip = vip_of(service, form)
    with socket_of(world.client, vip) as handle:
        handle.settimeout(None)
        handle.sendto(b"early", MSG_FASTOPEN, (vip, TCP_PORT))
        assert handle.getpeername()[:2] == (vip, TCP_PORT)
        assert read_answer(handle, 0).server in {"web1", "web2", "web3"}


def test_a_chosen_source_port_is_left_to_the_link(world, form, protocol):
    """Two sockets with one port, one backend behind two VIPs: tc tells them apart, at the socket they would collide."""
    services = [world.service(world.webs[:1]) for _ in range(2)]
    port = 21500 + 10 * list(FORMS).index(form) + protocol
    own = written(world.client.address(FORMS[form]), form)
    with (
        counted(world, connected=0, balanced=2),
        socket_of(world.client, own, protocol) as first,
        socket_of(world.client, own, protocol) as second,
    ):
        for handle, each in ((first, services[0]), (second, services[1])):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            handle.bind((own, port))
            handle.connect((vip_of(each, form), PORTS[protocol]))
            assert handle.getpeername()[0] == vip_of(each, form)
        assert len({asked(handle, protocol).client_port for handle in (first, second)}) == 2


def test_a_flow_does_not_take_the_answers_of_a_socket_that_was_led_to_its_backend(world, form):
    """The kernel gives one port to both: it hands them out per destination."""
    led, affine = world.service(world.webs[:1]), world.service(world.webs[:1], sessionAffinity="ClientIP")
    with connected(world, led, form) as handle:
        port = handle.getsockname()[1]
        vip = vip_of(affine, form)
        with socket_of(world.client, vip) as other, counted(world, connected=0, balanced=1):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("", port))
            other.connect((vip, TCP_PORT))
            assert read_answer(other, 0).client_port != port
            echo(handle, b"still heard")
            echo(other, b"as well")


def test_affinity_is_the_links_in_both_modes(world, family, protocol):
    """Affinity goes by the client's address, unknown at connect(): the link decides, so no switch moves a client."""
    service = world.service(world.webs, sessionAffinity="ClientIP")
    seen = set()
    for mode in ("hybrid", "tc", "hybrid"):
        world.daemon.settings({"mode": mode})
        until(lambda mode=mode: world.daemon.json("status")["daemon"]["settings"]["mode"] == mode, f"mode {mode}")
        seen |= {ask(world.client, service.vip(family), PORTS[protocol], protocol).server for _ in range(15)}
    assert len(seen) == 1


def test_source_ranges_hold(world, family):
    external = {4: "192.0.2.77", 6: "2001:db8::77"}[family]
    inside = f"{world.client.address(family)}/{ {4: 32, 6: 128}[family] }"
    service = world.service(
        world.webs,
        wait=False,
        type="LoadBalancer",
        loadBalancerSourceRanges=[inside],
        ingress=[external],
    )
    try:
        await_answer(world.client, external, TCP_PORT)
        with pytest.raises(TimeoutError):
            ask(world.webs[0], external, TCP_PORT, timeout=0.5)
    finally:
        service.remove()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_pods_own_loopback_is_no_service(world, address):
    """Whoever may write the status of a Service could otherwise take over every pod's loopback."""
    service = world.service(world.webs, type="LoadBalancer", ingress=[address])
    with closing(EchoServer(world.client, "own").listen(address, TCP_PORT)):
        assert {ask(world.client, address, TCP_PORT).server for _ in range(5)} == {"own"}
    assert f"status.loadBalancer.ingress[0].ip: '{address}' is loopback" in str(world.daemon.healthz()[1]["problems"])
    service.remove()


def test_what_a_traffic_policy_drops_times_out(world, family, protocol):
    far = world.lab.nodes["node2"].pods["far"]
    members = [EndpointSpec(far.ip4, node_name="node2"), EndpointSpec(far.ip6, node_name="node2")]
    service = world.service(members, wait=False, internalTrafficPolicy="Local")
    until(lambda: service.name in str(world.daemon.json("services")), "the Service to be in force")
    with pytest.raises(TimeoutError):
        ask(world.client, service.vip(family), PORTS[protocol], protocol, timeout=0.5)


def test_sockets_of_the_host_network_are_left_alone(world, service, form, protocol):
    """hostNetwork pods are processes in the node's network namespace, in cgroups like any other."""
    vip = vip_of(service, form)
    with counted(world, connected=0), socket_of(world.node, vip, protocol) as handle:
        handle.connect((vip, PORTS[protocol])) if protocol is Protocol.UDP else handle.connect_ex((vip, TCP_PORT))
        handle.sendto(b"?", (vip, UDP_PORT)) if protocol is Protocol.UDP else None


def test_mptcp_is_left_to_the_link(world, service, family):
    """The application's socket is another one than those that connect."""
    with world.client.socket(
        {4: socket.AF_INET, 6: socket.AF_INET6}[family], socket.SOCK_STREAM, IPPROTO_MPTCP
    ) as handle:
        handle.settimeout(2)
        handle.connect((service.vip(family), TCP_PORT))
        assert read_answer(handle, 0).server in {"web1", "web2", "web3"}
        echo(handle, b"and on")
        assert handle.getpeername()[0] == service.vip(family)
