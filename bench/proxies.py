"""The proxies that are compared, with what the measurements ask of one: `launch`, `stop`, a process, a metrics port."""

from __future__ import annotations

from collections.abc import Mapping

from bench.usage import Usage, usage
from kproxy_ebpf.lab import Node
from kproxy_ebpf.lab.control_plane import ControlPlane, object_path
from kproxy_ebpf.lab.daemon import METRICS_PORT, Daemon
from kproxy_ebpf.lab.kube_proxy import KubeProxy


class OurProxy(Daemon):
    """Our daemon, fed by the API server instead of a folder."""

    metrics_port = METRICS_PORT

    def __init__(self, node: Node, cluster: ControlPlane, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(node, settings=settings)
        self._kubeconfig = cluster.kubeconfig()

    def arguments(self) -> list[str]:
        words = super().arguments()
        at = words.index("--manifests")
        return [*words[:at], "--kubeconfig", str(self._kubeconfig), *words[at + 2 :]]


class RealProxy(KubeProxy):
    metrics_port = 10249

    def launch(self) -> None:
        self.start()


Proxy = OurProxy | RealProxy


def weight(proxy: Proxy) -> Usage:
    """Raises OSError when the process is gone."""
    assert proxy.process is not None
    return usage(proxy.process.pid)


def add_node_object(cluster: ControlPlane, node: Node) -> None:
    """Proxies want their Node, with an address. Raises ApiError, OSError."""
    cluster.api("POST", object_path("Node"), {"metadata": {"name": node.name}})
    status = {"addresses": [{"type": "InternalIP", "address": node.ip4}]}
    cluster.api("PATCH", f"{object_path('Node', node.name)}/status", {"status": status})
