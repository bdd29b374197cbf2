"""Real BPF, in a bpffs of its own that is gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from socket import if_nametoindex

import pytest
from generations import empty_tables, fill
from harness import Datapath
from links import METHODS, ip
from nodes import MTU, NETWORKS, UPLINK, Node, Uplink
from packets import BACKEND, VIP, VIP_B

from kproxy_ebpf.contract.layouts import Switches
from kproxy_ebpf.datapath.attach.tc import Attacher
from kproxy_ebpf.datapath.forwarding.cluster_networks import ClusterTable
from kproxy_ebpf.datapath.forwarding.uplinks import UplinkTable
from kproxy_ebpf.datapath.generations.bpffs import root
from kproxy_ebpf.datapath.generations.generation import Generation, ensure, remove_all
from kproxy_ebpf.datapath.generations.sources import Constants, source_folder
from kproxy_ebpf.lab.netns import RUN_NETNS
from kproxy_ebpf.linux.bpf import Descriptor
from kproxy_ebpf.linux.netns import entered

SMALL = Constants(
    frontends_max=1024,
    slots_max=4096,
    backends_max=1024,
    flows_max=1024,
    affinity_max=256,
    source_ranges_max=64,
    events_bytes=1 << 16,
)


@pytest.fixture(scope="session")
def small() -> Constants:
    """Constants that make little tables."""
    return SMALL


@pytest.fixture(scope="session")
def session_bpffs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from _mounted(tmp_path_factory.mktemp("bpffs"))


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """An empty bpffs."""
    yield from _mounted(tmp_path / "bpffs")


@pytest.fixture(scope="session")
def generation(session_bpffs: Path) -> Generation:
    """The real programs with little tables, built once for all tests, not activated."""
    return ensure(session_bpffs, SMALL)


@pytest.fixture
def in_force(bpffs: Path, generation: Generation) -> Iterator[Generation]:
    """The session's generation, pinned a second time in a bpffs of its own, and in force there."""
    twin = Generation(root(bpffs) / generation.digest)
    for kind in ("maps", "programs"):
        (twin.path / kind).mkdir(parents=True)
        for pin in (generation.path / kind).iterdir():
            with Descriptor.open(pin) as object_:
                object_.pin(twin.path / kind / pin.name)
    twin.activate()
    yield twin
    remove_all(bpffs)
    assert list(bpffs.glob("kproxy-ebpf*")) == []


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the C sources, to be changed."""
    return Path(shutil.copytree(source_folder(), tmp_path / "bpf_src"))


@pytest.fixture
def filled(in_force: Generation, generation: Generation) -> Iterator[Generation]:
    """A generation in force with something in its tables."""
    fill(in_force)
    yield in_force
    empty_tables(generation)


@pytest.fixture(scope="session")
def both(generation: Generation) -> dict[int, Datapath]:
    """The programs of both families, by family."""
    return {family: Datapath(generation, family) for family in (4, 6)}


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def empty(both: dict[int, Datapath], request: pytest.FixtureRequest) -> Iterator[Datapath]:
    """One family's programs, with empty tables."""
    datapath = both[request.param]
    datapath.clear()
    yield datapath
    datapath.clear()


@pytest.fixture
def datapath(empty: Datapath) -> Datapath:
    """The same with one backend behind two VIPs, for TCP, UDP and SCTP."""
    empty.add_backend(1, BACKEND)
    for vip in (VIP, VIP_B):
        for protocol in ("tcp", "udp", "sctp"):
            empty.add_frontend(vip, [1], protocol)
    return empty


@pytest.fixture
def node(datapath: Datapath, generation: Generation) -> Iterator[Node]:
    name = f"way-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with entered(RUN_NETNS / name):
            subprocess.run(
                ["ip", "link", "add", "veth0", "mtu", str(MTU), "up", "type", "veth", "peer", "name", "peer0"],
                check=True,
            )
            node = Node(datapath, generation, if_nametoindex("veth0"))
            node.place()
            datapath.set_live(switches=Switches.TC | Switches.REDIRECT)
            yield node
            node.clear()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def uplink(node: Node) -> Iterator[Uplink]:
    subprocess.run(["ip", "-batch", "-"], input=UPLINK, text=True, check=True)
    subprocess.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"], check=True)
    ifindex = if_nametoindex("uplink0")
    networks = {ip_network(NETWORKS[node.family])}
    with UplinkTable(node.generation) as table, ClusterTable(node.generation, node.family) as cluster:
        table.add(ifindex)
        cluster.write(dict.fromkeys(networks, True))
        yield Uplink(node, ifindex)
        cluster.remove(networks)
        table.remove(ifindex)


@pytest.fixture
def netns() -> Iterator[str]:
    """A namespace of the test's own, in which the test runs. A second one, <name>-pod, for pods' ends of links."""
    name = f"attach-{os.getpid()}"
    ip(f"netns add {name}", f"netns add {name}-pod")
    try:
        with entered(RUN_NETNS / name):
            yield name
    finally:
        ip(f"netns del {name}", f"netns del {name}-pod")


@pytest.fixture
def veth(netns: str) -> int:
    ip("link add veth0 type veth peer name peer0")
    return if_nametoindex("veth0")


@pytest.fixture(params=METHODS)
def attacher(request: pytest.FixtureRequest, netns: str, generation: Generation) -> Iterator[Attacher]:
    attacher = Attacher(generation, request.param)
    yield attacher
    for ifindex in attacher.attached():
        attacher.detach(ifindex)
    assert list((generation.root / "links").iterdir()) == []
    attacher.close()


def _mounted(folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
