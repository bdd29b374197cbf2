"""The lab itself: without it working, no other test here means anything."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kproxy_ebpf.datapath.sockets.cgroup import find_cgroup
from kproxy_ebpf.lab import Cni, Lab, Namespace, registry
from kproxy_ebpf.lab.cluster import OUTSIDE4, OUTSIDE6
from kproxy_ebpf.lab.traffic import BLOCK, EchoServer, ask, opened, transfer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

KILLED_RUN = """
import time
from pathlib import Path
from kproxy_ebpf.lab import Lab
lab = Lab()
lab.node("node1").pod("client").popen(["sleep", "1000"])
print(lab.run_id, flush=True)
time.sleep(1000)
"""


def test_pods_nodes_and_the_world_outside_reach_each_other():
    with Lab() as lab:
        pods = [lab.node("node1").pod("one"), lab.node("node2", cni=Cni.BRIDGE).pod("two"), lab.nodes["node2"].pod("x")]
        places = [*((pod, pod.ip4, pod.ip6) for pod in pods), (lab.net, OUTSIDE4, OUTSIDE6)]
        for place, *addresses in places:
            server = EchoServer(place, place.name)
            for address in addresses:
                server.listen(address, 80).listen(address, 80, Protocol.UDP)
                for client, *seen_as in places[:3]:
                    for protocol in (Protocol.TCP, Protocol.UDP):
                        answer = ask(client, address, 80, protocol)
                        assert answer.server == place.name
                        assert answer.client in seen_as
            server.close()


def test_offloads_decide_what_crosses_the_wire():
    with Lab() as lab:
        node = lab.node("node1")
        ends = [node.pod("a"), node.pod("b")]
        server = ends[1].socket(2, 1)
        server.bind((ends[1].ip4, 80))
        server.listen()
        packets = {}
        for on in (True, False):
            for pod in ends:
                pod.offloads("eth0", on=on)
                node.offloads(pod.host_link, on=on)
            before = received_packets(ends[1])
            with opened(ends[0], ends[1].ip4, 80) as client, server.accept()[0] as accepted:
                transfer(client, accepted, 4)
            packets[on] = received_packets(ends[1]) - before
        server.close()
        assert packets[False] >= 4 * len(BLOCK) / 1500
        assert packets[True] < packets[False] / 5


def received_packets(pod: Namespace) -> int:
    done = pod.run(["ip", "-s", "-j", "link", "show", "eth0"])
    return int(done.stdout.split('"rx":')[1].split('"packets":')[1].split(",")[0])


@pytest.mark.alone
def test_a_one_node_lab_is_there_at_once_and_leaves_nothing():
    begin = time.monotonic()
    with Lab() as lab:
        node = lab.node("node1")
        for name in ("a", "b", "c", "d"):
            node.pod(name)
        assert time.monotonic() - begin < 2
        process = node.pods["a"].popen(["sleep", "1000"])
        run_id = lab.run_id
        assert len(registry.namespaces_of(run_id)) == 6
    assert process.poll() == -signal.SIGTERM
    assert registry.namespaces_of(run_id) == []
    assert not lab.cgroup.exists()
    assert not (registry.RUNS / run_id).exists()


@pytest.mark.alone
def test_what_a_killed_run_left_is_cleaned_and_what_a_living_one_has_is_not():
    with Lab() as living:
        process = subprocess.Popen([sys.executable, "-c", KILLED_RUN], stdout=subprocess.PIPE, text=True)
        with process:
            run_id = process.stdout.readline().strip()
            sleeper = int(subprocess.check_output(["ip", "netns", "pids", f"kpx-{run_id}-node1-client"]))
            process.kill()
        assert registry.namespaces_of(run_id)
        cgroup = registry.cgroup_of(run_id)
        assert [each.name for each in cgroup.glob("*/")] == ["node1"]
        assert run_id in registry.clean_stale()
        assert not cgroup.exists()
        assert registry.namespaces_of(run_id) == []
        assert registry.namespaces_of(living.run_id)
        until(lambda: not Path(f"/proc/{sleeper}").exists(), "the killed run's process to end")


@pytest.mark.alone
def test_sockets_and_processes_belong_to_the_cgroup_of_their_node():
    with Lab() as lab:
        node = lab.node("node1")
        pod = node.pod("a")
        told = pod.run(["cat", "/proc/self/cgroup"]).stdout.splitlines()
        assert f"0::/{node.cgroup.folder.relative_to(find_cgroup())}" in told
        begin = time.monotonic()
        for _ in range(100):
            pod.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
        assert time.monotonic() - begin < 0.1
        assert node.cgroup.call(threading.get_native_id) != threading.get_native_id()
        assert "kproxy-ebpf-lab" not in Path("/proc/thread-self/cgroup").read_text()


def test_a_transfer_that_was_changed_is_noticed():
    with Lab() as lab:
        node = lab.node("node1")
        sender, receiver = node.pod("a"), node.pod("b")
        with receiver.socket(2, 1) as server:
            server.bind((receiver.ip4, 80))
            server.listen()
            with opened(sender, receiver.ip4, 80) as client, server.accept()[0] as accepted:
                client.sendall(b"x")
                with pytest.raises(ConnectionError, match="block 0 was changed"):
                    transfer(client, accepted, 1)
