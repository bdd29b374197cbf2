"""Pod networks made by the real CNI plugins, listed as clusters list them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kproxy_ebpf.lab.cni import Runtime

if TYPE_CHECKING:
    from kproxy_ebpf.lab.cluster import Node, Pod

PTP: Mapping[str, Any] = {
    "type": "ptp",
    "ipMasq": False,
    "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
}
"""As kindnet sets it up."""
BRIDGE: Mapping[str, Any] = {
    "type": "bridge",
    "bridge": "cni0",
    "isDefaultGateway": True,
    "hairpinMode": True,
    "ipMasq": False,
    "ipam": {"type": "host-local", "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00:244::/32"}]},
}
"""As flannel sets it up."""
PORTMAP: Mapping[str, Any] = {"type": "portmap", "capabilities": {"portMappings": True}}


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of the node that leads to one of the pod."""

    hostPort: int  # noqa: N815 - the names are the specification's
    containerPort: int  # noqa: N815
    protocol: str = "tcp"


class PodNetwork:
    """That of a node: the plugin `first` makes the links, then comes portmap. `state` keeps the addresses given out."""

    def __init__(self, node: Node, first: Mapping[str, Any], state: Path) -> None:
        self._node, self._first, self._state = node, first, state
        self._runtimes: dict[str, Runtime] = {}

    def add(self, pod: Pod, host_ports: tuple[HostPort, ...], mtu: int) -> str:
        """Connect a pod. Returns the name of its link's host side. Raises PluginError."""
        offered = {"ips": [pod.ip4, pod.ip6], "portMappings": [asdict(each) for each in host_ports]}
        runtime = self._runtimes[pod.netns] = Runtime(self._node, self._conflist(mtu), offered=offered)
        interfaces = runtime.add(pod)["interfaces"]
        (link,) = (each["name"] for each in interfaces if each["name"].startswith("veth"))
        return str(link)

    def remove(self, pod: Pod) -> None:
        """Give back what the pod had. Raises PluginError."""
        self._runtimes.pop(pod.netns).delete(pod)

    def _conflist(self, mtu: int) -> dict[str, Any]:
        ranges = [[{"subnet": str(subnet)}] for subnet in (self._node.pod_cidr4, self._node.pod_cidr6)]
        ipam = {**self._first["ipam"], "dataDir": str(self._state), "ranges": ranges}
        first = {**self._first, "mtu": mtu, "ipam": ipam, "capabilities": {"ips": True}}
        return {"cniVersion": "0.4.0", "name": "lab", "plugins": [first, PORTMAP]}
