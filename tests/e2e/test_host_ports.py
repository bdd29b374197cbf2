"""Pod networks of the real CNI plugins: ports of the node that portmap leads to pods, while packets are redirected."""

from __future__ import annotations

from contextlib import closing

import pytest
from redirect import PATIENCE, ways
from worlds import in_worlds

from kproxy_ebpf.lab import registry
from kproxy_ebpf.lab.cluster import Cni, Lab
from kproxy_ebpf.lab.crowd import Crowd
from kproxy_ebpf.lab.pod_network import HostPort
from kproxy_ebpf.lab.traffic import EchoServer, await_answer, opened
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

HOST_PORT, POD_PORT = 8081, 8080


@pytest.fixture
def published(world):
    """A pod behind a port of the node, by IPv4: not every kernel has what iptables needs for IPv6."""
    pod = world.node.pod("published", host_ports=(HostPort(HOST_PORT, POD_PORT),))
    with closing(world.serve(pod)) as server:
        yield pod
    world.servers.remove(server)
    world.node.remove(pod)


@in_worlds("redirect", "redirect-bridge")
def test_connections_to_a_host_port_go_on_beside_redirect(world, published):
    """Only the host knows whom a host port is translated to, so those packets stay on its way, and no others."""
    for pod in (world.client, published):
        with opened(world.node, pod.ip4, 9, Protocol.UDP) as probe:
            probe.send(b"as a kubelet's probe finds a pod behind a bridge")
    links = {world.client.host_link, published.host_link}
    until(lambda: links.issubset(served(world)), "redirect to know the pods", seconds=PATIENCE)
    clients = [world.client, world.lab.nodes["node2"].pods["farclient"]]
    for client in clients:
        await_answer(client, world.node.ip4, HOST_PORT, what="the host port to be there")
        with Crowd(client, world.node.ip4, HOST_PORT, 5) as crowd:
            crowd.go_on()
            before = ways(world.daemon)["peer"]
            await_answer(world.client, published.ip4, POD_PORT, what="the pod's own port")
            assert ways(world.daemon)["peer"] > before
            crowd.go_on()
        assert crowd.failures == []


def served(world) -> list[str]:
    redirect = world.daemon.json("status")["daemon"]["redirect"]
    return redirect["served"]["IPv4"]


@in_worlds("redirect", "redirect-bridge")
def test_every_pods_link_is_told_of(world):
    """Redirect serves all, or says why not. A pod that nobody has asked for is not yet known behind a bridge."""
    links = {pod.host_link for pod in world.node.pods.values()}

    def told():
        redirect = world.daemon.json("status")["daemon"]["redirect"]
        return {*redirect["served"]["IPv4"], *redirect["others"]} == links and redirect

    until(told, "all links to be told of", seconds=PATIENCE)
    redirect = told()
    if world.node.cni.is_bridge:
        assert all("neighbour" in reason for reason in redirect["others"].values())
    else:
        assert redirect["others"] == {}
        assert set(redirect["served"]["IPv6"]) == links
    assert "links (IPv4" in world.daemon.healthz()[1]["redirect"]
    assert world.daemon.metrics()['kproxy_ebpf_redirect_links{ip_family="IPv4"}'] == len(redirect["served"]["IPv4"])


@pytest.mark.parametrize("cni", [Cni.PTP_PLUGIN, Cni.BRIDGE_PLUGIN])
def test_what_the_plugins_keep_goes_with_the_lab(cni):
    with Lab() as lab:
        node = lab.node("node1", cni=cni)
        first, second = node.pod("a"), node.pod("b", host_ports=(HostPort(HOST_PORT, POD_PORT),))
        with closing(EchoServer(second, "b").listen(second.ip4, POD_PORT)):
            assert await_answer(first, second.ip4, POD_PORT).server == "b"
        state = lab.folder / "node1.cni" / "lab"
        assert {path.name for path in state.glob("*.*.*.*")} == {first.ip4, second.ip4}
        node.remove(second)
        assert {path.name for path in state.glob("*.*.*.*")} == {first.ip4}
        assert str(HOST_PORT) not in node.run(["nft", "list", "ruleset"]).stdout
        assert node.replace(first, "c").ip4 == first.ip4
    assert not (registry.RUNS / lab.run_id).exists()
    assert registry.namespaces_of(lab.run_id) == []
