"""What a pod sees of a Service: SEMANTICS in traffic. Run once for each way of attaching programs to links."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter

import pytest
from worlds import in_worlds

from kproxy_ebpf.lab.cluster import OUTSIDE4, OUTSIDE6
from kproxy_ebpf.lab.manifests import EndpointSpec
from kproxy_ebpf.lab.traffic import EchoServer, ask, await_answer, opened, read_answer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

pytestmark = in_worlds("tcx", "clsact", "bridge", "hybrid", "redirect")

NOWHERE = r"unreachable|No route"  # what the router says of a VIP that nobody translated


@pytest.fixture(scope="module")
def service(world):
    return world.service(world.webs)


@pytest.fixture(scope="module")
def empty(world):
    return world.service([])


def test_connections_are_spread_and_keep_their_source(world, service, family, protocol, port):
    answers = [ask(world.client, service.vip(family), port, protocol) for _ in range(300)]
    spread = Counter(answer.server for answer in answers)
    assert set(spread) == {"web1", "web2", "web3"}
    assert min(spread.values()) >= 60  # 300 / 3 minus five standard deviations
    assert {answer.client for answer in answers} == {world.client.address(family)}


def test_a_backend_on_another_node_is_reached_from_both_nodes(world, family, protocol, port):
    service = world.service([world.lab.nodes["node2"].pods["far"]])
    for client in (world.client, world.lab.nodes["node2"].pods["farclient"]):
        answer = ask(client, service.vip(family), port, protocol)
        assert (answer.server, answer.client) == ("far", client.address(family))


@pytest.mark.parametrize("where", ["this node", "another node", "outside of the cluster"])
def test_a_backend_that_is_no_pod(world, family, protocol, port, where):
    """The API server is one, behind the Service that every cluster has."""
    node2 = world.lab.nodes["node2"]
    place, addresses = {
        "this node": (world.node, (world.node.ip4, world.node.ip6)),
        "another node": (node2, (node2.ip4, node2.ip6)),
        "outside of the cluster": (world.lab.net, (OUTSIDE4, OUTSIDE6)),
    }[where]
    target = {Protocol.TCP: 8080, Protocol.UDP: 5353}[protocol]
    address = addresses[family == 6]
    server = EchoServer(place, where).listen(address, target, protocol)
    service = world.service([EndpointSpec(address)], wait=False)
    try:
        answer = await_answer(world.client, service.vip(family), port, protocol)
        assert (answer.server, answer.client) == (where, world.client.address(family))
    finally:
        server.close()
        service.remove()


def test_no_backend_is_refused_at_once_every_time(world, empty, family, protocol, port):
    refused_at_once(world.client, empty.vip(family), port, protocol)


def test_an_undefined_port_of_a_vip_is_refused_at_once_every_time(world, service, family, protocol):
    refused_at_once(world.client, service.vip(family), 4711, protocol)


def refused_at_once(client, address, port, protocol, tries=50):
    for _ in range(tries):
        begin = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            ask(client, address, port, protocol)
        assert time.monotonic() - begin < 0.5


def test_endpoints_that_are_not_ready_count_as_none(world, family):
    web = world.webs[0]
    service = world.service([EndpointSpec(web.ip4, ready=False), EndpointSpec(web.ip6, ready=False)])
    refused_at_once(world.client, service.vip(family), 80, Protocol.TCP, tries=3)


def test_addresses_that_are_no_vip_pass_untouched(world, service, family, protocol):
    outside = {4: OUTSIDE4, 6: OUTSIDE6}[family]
    server = EchoServer(world.lab.net, "outside").listen(outside, 80, protocol)
    target = {Protocol.TCP: 8080, Protocol.UDP: 5353}[protocol]
    try:
        assert ask(world.client, outside, 80, protocol).client == world.client.address(family)
        assert ask(world.client, world.webs[0].address(family), target, protocol).server == "web1"
    finally:
        server.close()


def test_an_unallocated_address_is_left_to_the_node(world, service, family):
    unallocated = {4: "10.96.255.1", 6: "fd00:96::ffff"}[family]
    with pytest.raises(OSError, match=NOWHERE):
        ask(world.client, unallocated, 80)


def test_traffic_of_the_node_itself_is_left_alone(world, service, family):
    with pytest.raises(OSError, match=NOWHERE):
        ask(world.node, service.vip(family), 80)


def test_a_pod_reaches_itself(world, family, protocol, port):
    web = world.webs[0]
    service = world.service([web], wait=False)
    await_answer(web, service.vip(family), port, protocol)
    for _ in range(20):
        answer = ask(web, service.vip(family), port, protocol)
        assert answer.server == web.name


def test_one_backend_behind_two_vips_with_one_client_port_at_once(world, family, protocol, port):
    services = [world.service([world.webs[0]]) for _ in range(2)]
    source_port = 20000 + protocol  # below those that the kernel hands out
    with (
        world.client.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], kind(protocol)) as first,
        world.client.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], kind(protocol)) as second,
    ):
        for handle, service in zip((first, second), services, strict=True):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            handle.settimeout(2)
            handle.bind((world.client.address(family), source_port))
            handle.connect((service.vip(family), port))
        for _ in range(3):
            for handle in (first, second):
                handle.send(b"hello\n")
        seen = {read_answer(handle, 0).client_port for handle in (first, second)}
    assert len(seen) == 2


def kind(protocol):
    return {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}[protocol]


def test_named_ports_lead_to_their_own_targets(world, family):
    ports = {"a": (81, "TCP", 8181), "b": (82, "TCP", 8282), "c": (81, "UDP", 8383)}
    web = world.webs[1]
    servers = []
    for name, (_, protocol, target) in ports.items():
        servers.append(EchoServer(web, name).listen(web.address(family), target, Protocol[protocol]))
    service = world.service([web], ports, wait=False)
    try:
        for name, (port, protocol, _) in ports.items():
            answer = until(lambda p=port, o=protocol: ask(world.client, service.vip(family), p, Protocol[o]), name)
            assert answer.server == name
    finally:
        for server in servers:
            server.close()


def test_a_removed_service_stops_answering_and_leaves_established_connections(world, family):
    service = world.service([world.webs[0]])
    with opened(world.client, service.vip(family), 80) as handle:
        read_answer(handle, 0)
        service.remove()

        def gone():
            try:
                ask(world.client, service.vip(family), 80)
            except OSError as error:
                return bool(re.search(NOWHERE, str(error)))
            return False

        until(gone, "the VIP to fall through to the node")
        handle.sendall(b"still here")
        assert handle.recv(100) == b"still here"


def test_client_ip_affinity_keeps_a_client_with_one_backend(world, family, protocol, port):
    service = world.service(world.webs, sessionAffinity="ClientIP")
    assert len({ask(world.client, service.vip(family), port, protocol).server for _ in range(30)}) == 1


def test_internal_traffic_policy_local_without_a_local_endpoint_drops(world, family):
    far = world.lab.nodes["node2"].pods["far"]
    members = [EndpointSpec(far.ip4, node_name="node2"), EndpointSpec(far.ip6, node_name="node2")]
    service = world.service(members, wait=False, internalTrafficPolicy="Local")
    farclient = world.lab.nodes["node2"].pods["farclient"]
    until(lambda: ask(farclient, service.vip(family), 80).server == "far", "the Service to be in force on node2")

    def dropped():
        try:
            ask(world.client, service.vip(family), 80, timeout=0.3)
        except TimeoutError:
            return True
        except OSError:
            return False
        raise AssertionError("a remote endpoint answered")

    until(dropped, "the policy to drop on node1")


def test_external_ips_lead_to_the_same_backends(world, family):
    external = {4: f"192.0.2.{world.node.ip4[-1]}", 6: "2001:db8::1"}[family]
    service = world.service(world.webs[:1], wait=False, externalIPs=[external])
    until(lambda: ask(world.client, external, 80).server == "web1", f"{service.name} to be in force")
    service.remove()


def test_strict_reverse_path_filtering_is_no_obstacle(world, service):
    """Hairpin too: what comes back to a pod with the VIP as its source never meets the filter."""
    node, web = world.node, world.webs[0]
    own = world.service([web])
    links = [pod.host_link for pod in node.pods.values()]
    strict = {f"ipv4/conf/{link}/rp_filter": "1" for link in ("all", "eth0", *links)}
    before = {key: node.read_sysctl(key) for key in strict}
    node.sysctl(strict)
    try:
        assert {ask(world.client, service.vip4, 80).server for _ in range(50)} == {"web1", "web2", "web3"}
        assert ask(web, own.vip4, 80).server == web.name
    finally:
        node.sysctl(before)
