"""A cluster on one machine: nodes and pods are network namespaces, the wires between them veth pairs.

::

    client ═ eth0 ── vethclient ═ node1 ═ eth0 ── bridge in the namespace "net" ── eth0 ═ node2 ═ vethweb ── eth0 ═ web

Where the underlay is VXLAN, pods' packets leave a node through a tunnel's end, ``vxlan0``, over eth0.
Node N has 10.200.0.N and fd00:200::N; its pods have 10.244.N.2… and fd00:244:N::2…. Their sockets belong to a cgroup of
the node. The namespace `Lab.net` is the world outside: every node's default route ends there. Nothing is made in the
machine's own namespace.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from types import TracebackType
from typing import Self

from kproxy_ebpf.lab import netns, pod_network, registry
from kproxy_ebpf.lab.cgroups import NodeCgroup
from kproxy_ebpf.lab.netns import Namespace
from kproxy_ebpf.lab.pod_network import HostPort, PodNetwork
from kproxy_ebpf.lab.sysctls import NODE, OUTSIDE, QUICK

# The gateway that every pod of a point-to-point node sees; a permanent neighbour, so the host side needs no address.
GATEWAY4, GATEWAY6, GATEWAY_MAC = "169.254.1.1", "fe80::1", "ee:ee:ee:ee:ee:ee"
OUTSIDE4, OUTSIDE6 = "10.200.0.254", "fd00:200::fe"
LINK_NAME_MAX = 15
CLUSTER_CIDRS = "10.244.0.0/16, fd00:244::/32"
TUNNEL, TUNNEL_MTU, VTEP_MACS = "vxlan0", 1450, "02:76:78:00:00"


class Cni(StrEnum):
    """How a node wires its pods. PTP: a host route to each pod's link. BRIDGE: all links in one bridge, the gateway.
    …_PLUGIN: as the real CNI plugins do it.
    """

    PTP = "ptp"
    BRIDGE = "bridge"
    PTP_PLUGIN = "ptp-plugin"
    BRIDGE_PLUGIN = "bridge-plugin"

    @property
    def is_bridge(self) -> bool:
        return self in (Cni.BRIDGE, Cni.BRIDGE_PLUGIN)


_PLUGINS = {Cni.PTP_PLUGIN: pod_network.PTP, Cni.BRIDGE_PLUGIN: pod_network.BRIDGE}


class Underlay(StrEnum):
    """How packets get from node to node: ROUTED as they are, or VXLAN inside of the nodes' own packets."""

    ROUTED = "routed"
    VXLAN = "vxlan"


class Pod(Namespace):
    """A pod. `host_link` is the name of its link's host side, in the node's namespace."""

    def __init__(self, node: Node, name: str, number: int, mtu: int, host_ports: tuple[HostPort, ...] = ()) -> None:
        super().__init__(f"{node.netns}-{name}", name, QUICK, node.cgroup)
        self.node = node
        self.number = number
        self.ip4 = str(node.pod_cidr4[number])
        self.ip6 = str(node.pod_cidr6[number])
        if node.plugins:
            self.ip("link set lo up")
            self.host_link = node.plugins.add(self, host_ports, mtu)
            return
        self.host_link = f"veth{name}"
        if len(self.host_link) > LINK_NAME_MAX:
            raise ValueError(f"pod name {name!r} is too long: its link would be {self.host_link}")
        node.ip(
            f"link add {self.host_link} mtu {mtu} address {GATEWAY_MAC} type veth "
            f"peer name eth0 mtu {mtu} netns {self.netns}",
            *node.wires_to(self),
        )
        self.ip("link set lo up", "link set eth0 up", *node.wires_in(self))

    def address(self, family: int) -> str:
        return {4: self.ip4, 6: self.ip6}[family]


class Node(Namespace):
    """A node with an uplink `eth0` to the other nodes and to the world outside."""

    def __init__(self, lab: Lab, name: str, number: int, cidrs: tuple[str, str], cni: Cni, mtu: int) -> None:
        self.cgroup: NodeCgroup = NodeCgroup(lab.cgroup / name)
        super().__init__(f"{lab.prefix}-{name}", name, NODE, self.cgroup)
        self.lab = lab
        self.cni = cni
        state = lab.folder / f"{name}.cni"
        self.plugins = PodNetwork(self, _PLUGINS[cni], state) if cni in _PLUGINS else None
        self.ip4, self.ip6 = f"10.200.0.{number}", f"fd00:200::{number}"
        self.pod_cidr4, self.pod_cidr6 = IPv4Network(cidrs[0]), IPv6Network(cidrs[1])
        self.pods: dict[str, Pod] = {}
        self.vtep_mac = f"{VTEP_MACS}:{number:02x}"
        self._next_pod = 2
        lab.net.ip(
            f"link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {self.netns}",
            f"link set {name} master underlay up",
        )
        self.ip(
            "link set lo up",
            f"addr add {self.ip4}/24 dev eth0",
            f"addr add {self.ip6}/64 nodad dev eth0",
            "link set eth0 up",
            f"route add default via {OUTSIDE4}",
            f"route add ::/0 via {OUTSIDE6}",
            *(self._bridge() if cni is Cni.BRIDGE else ()),
            *(self._tunnel() if lab.underlay is Underlay.VXLAN else ()),
        )

    def pod(self, name: str, *, mtu: int = 1500, host_ports: tuple[HostPort, ...] = ()) -> Pod:
        """Add a pod; its link exists on the node before anything can be sent from inside, as with a CNI plugin.

        `host_ports` need the plugins.
        """
        if name in self.pods:
            raise ValueError(f"{self.name} has a pod {name!r} already")
        pod = self.pods[name] = Pod(self, name, self._next_pod, mtu, host_ports)
        self._next_pod += 1
        return pod

    def replace(self, old: Pod, name: str) -> Pod:
        """Take a pod away, and make another with its addresses."""
        self.remove(old)
        pod = self.pods[name] = Pod(self, name, old.number, 1500)
        return pod

    def remove(self, pod: Pod) -> None:
        """Take a pod away, its processes and its link with it."""
        del self.pods[pod.name]
        pod.close()
        if self.plugins:
            self.plugins.remove(pod)
        else:
            self.ip(f"link del {pod.host_link}")
        netns.delete([pod.netns])

    def route_to(self, other: Node) -> None:
        if self.lab.underlay is Underlay.VXLAN:
            self._tunnel_to(other)
            return
        self.ip(
            f"route add {other.pod_cidr4} via {other.ip4}",
            f"route add {other.pod_cidr6} via {other.ip6}",
        )

    def _bridge(self) -> tuple[str, ...]:
        return (
            "link add cni0 type bridge forward_delay 0 mcast_snooping 0",
            f"addr add {self.pod_cidr4[1]}/{self.pod_cidr4.prefixlen} dev cni0",
            f"addr add {self.pod_cidr6[1]}/{self.pod_cidr6.prefixlen} nodad dev cni0",
            "link set cni0 up",
        )

    def _tunnel(self) -> tuple[str, ...]:
        """As flannel does it: the first address of a node's networks is that of its end of the tunnel."""
        return (
            f"link add {TUNNEL} address {self.vtep_mac} mtu {TUNNEL_MTU} type vxlan id 1 dev eth0 "
            f"local {self.ip4} dstport 8472 nolearning",
            f"addr add {self.pod_cidr4[0]}/32 dev {TUNNEL}",
            f"addr add {self.pod_cidr6[0]}/128 nodad dev {TUNNEL}",
            f"link set {TUNNEL} up",
        )

    def _tunnel_to(self, other: Node) -> None:
        netns.run(["bridge", "-n", self.netns, "fdb", "append", other.vtep_mac, "dev", TUNNEL, "dst", other.ip4])
        self.ip(
            *(
                line
                for cidr in (other.pod_cidr4, other.pod_cidr6)
                for line in (
                    f"neigh add {cidr[0]} lladdr {other.vtep_mac} dev {TUNNEL} nud permanent",
                    f"route add {cidr} via {cidr[0]} dev {TUNNEL} onlink",
                )
            )
        )

    def wires_to(self, pod: Pod) -> tuple[str, ...]:
        """The `ip` commands that connect the host side of a pod's link."""
        if self.cni is Cni.BRIDGE:
            return (f"link set {pod.host_link} master cni0 up",)
        return (
            f"link set {pod.host_link} up",
            f"route add {pod.ip4}/32 dev {pod.host_link}",
            f"route add {pod.ip6}/128 dev {pod.host_link}",
        )

    def wires_in(self, pod: Pod) -> tuple[str, ...]:
        """The `ip` commands that configure the pod's own side."""
        if self.cni is Cni.BRIDGE:
            return (
                f"addr add {pod.ip4}/{self.pod_cidr4.prefixlen} dev eth0",
                f"addr add {pod.ip6}/{self.pod_cidr6.prefixlen} nodad dev eth0",
                f"route add default via {self.pod_cidr4[1]}",
                f"route add ::/0 via {self.pod_cidr6[1]}",
            )
        return (
            f"addr add {pod.ip4}/32 dev eth0",
            f"addr add {pod.ip6}/128 nodad dev eth0",
            f"route add {GATEWAY4} dev eth0 scope link",
            f"route add default via {GATEWAY4} dev eth0",
            f"route add ::/0 via {GATEWAY6} dev eth0",
            f"neigh add {GATEWAY4} lladdr {GATEWAY_MAC} dev eth0 nud permanent",
            f"neigh add {GATEWAY6} lladdr {GATEWAY_MAC} dev eth0 nud permanent",
        )


class Lab:
    """A context manager: everything is gone when it is left. What a killed run left is removed on entry."""

    def __init__(self, underlay: Underlay = Underlay.ROUTED) -> None:
        registry.clean_stale()
        self.underlay = underlay
        self.run_id = registry.claim()
        self.prefix = f"{registry.PREFIX}-{self.run_id}"
        self.folder = registry.RUNS / self.run_id
        self.cgroup = registry.cgroup_of(self.run_id)
        self.nodes: dict[str, Node] = {}
        self.net = Namespace(f"{self.prefix}-net", "net", OUTSIDE)
        self.net.ip(
            "link set lo up",
            "link add underlay type bridge forward_delay 0 mcast_snooping 0",
            f"addr add {OUTSIDE4}/24 dev underlay",
            f"addr add {OUTSIDE6}/64 nodad dev underlay",
            "link set underlay up",
        )

    def node(self, name: str, *, pod_cidrs: tuple[str, str] | None = None, cni: Cni = Cni.PTP, mtu: int = 1500) -> Node:
        """Add a node; `pod_cidrs` are (IPv4, IPv6), `mtu` is its uplink's. The nodes learn routes to each other."""
        number = len(self.nodes) + 1
        node = Node(self, name, number, pod_cidrs or (f"10.244.{number}.0/24", f"fd00:244:{number}::/64"), cni, mtu)
        self.net.ip(
            f"route add {node.pod_cidr4} via {node.ip4}",
            f"route add {node.pod_cidr6} via {node.ip6}",
        )
        for other in self.nodes.values():
            other.route_to(node)
            node.route_to(other)
        self.nodes[name] = node
        return node

    def close(self) -> None:
        """End all processes and remove all namespaces, mounts and files of this lab."""
        for node in self.nodes.values():
            for namespace in (*node.pods.values(), node):
                namespace.close()
            node.cgroup.close()
        self.net.close()
        registry.release(self.run_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
