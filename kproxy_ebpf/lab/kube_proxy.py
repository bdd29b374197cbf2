"""The real kube-proxy on a node of the lab."""

from __future__ import annotations

import subprocess

import yaml

from kproxy_ebpf.lab.cluster import Node
from kproxy_ebpf.lab.control_plane import ControlPlane

POD_CIDRS = "10.244.0.0/16,fd00:244::/32"


class KubeProxy:
    """kube-proxy in `mode` (nftables or iptables), speaking for the Node object `node_name` (default: the node's name).

    It is started by `start` and ends with the node's namespace, or by `stop`, which leaves its rules in force as a
    stopped kube-proxy does.
    """

    def __init__(self, node: Node, control: ControlPlane, mode: str, *, node_name: str = "") -> None:
        self.node = node
        self.folder = node.lab.folder / f"kube-proxy-{node.name}"
        self.folder.mkdir(parents=True)
        self.command = [str(control.programs / "kube-proxy"), f"--config={self.folder / 'config.yaml'}"]
        self.process: subprocess.Popen[str] | None = None
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(control.kubeconfig())},
            "hostnameOverride": node_name or node.name,
            "mode": mode,
            "clusterCIDR": POD_CIDRS,
            "conntrack": {"maxPerCore": 0},
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self.process = self.node.popen(self.command, stdout=log, stderr=subprocess.STDOUT)

    def stop(self) -> int:
        """SIGTERM and reap; return the exit code. Raises RuntimeError where it was not started."""
        if self.process is None:
            raise RuntimeError(f"no kube-proxy runs on {self.node.name}")
        process, self.process = self.process, None
        return self.node.end(process)
