"""A lab that a real control plane governs: the manifests applied, a daemon with nothing but the rights they give it,
and pods that post themselves as a kubelet would.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kproxy_ebpf.lab import Lab, Node, Pod
from kproxy_ebpf.lab.control_plane import ControlPlane, object_path
from kproxy_ebpf.lab.daemon import COMMAND, Daemon
from kproxy_ebpf.lab.traffic import EchoServer, ask
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

MANIFESTS = Path(__file__).parents[2] / "manifests"
NAMESPACE, NAME = "kube-system", "kproxy-ebpf"
SERVICE_ACCOUNT = f"system:serviceaccount:{NAMESPACE}:{NAME}"
CONTROLLERS = ("endpointslice-controller", "namespace-controller", "serviceaccount-controller", "daemonset-controller")

KUBELET_LABELS = {"kubernetes.io/os": "linux"}
HTTP, DNS = 8080, 5353
PORTS = (
    {"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"},
    {"name": "dns", "port": 53, "targetPort": DNS, "protocol": "UDP"},
)


class ClusterDaemon(Daemon):
    """The daemon as the DaemonSet in the API server describes it: its arguments, variables and capabilities, and its
    ServiceAccount's token, in a file as the kubelet would mount it.
    """

    def __init__(self, node: Node, control: ControlPlane) -> None:
        super().__init__(node)
        self.control = control
        self.token_file = self.folder / "token"
        self.kubeconfig = self.folder / "kubeconfig"
        user = {"name": NAME, "user": {"tokenFile": self.token_file.name}}
        content = yaml.safe_load(control.kubeconfig().read_text())
        content["users"] = [user]
        content["contexts"][0]["context"]["user"] = NAME
        self.kubeconfig.write_text(yaml.safe_dump(content))
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{NAME}"
        (self.container,) = control.api("GET", path)["spec"]["template"]["spec"]["containers"]
        self.rotate_token()

    def rotate_token(self) -> None:
        """Put a new token in the place of the old one, in one step."""
        done = self.control.kubectl("create", "token", NAME, f"--namespace={NAMESPACE}", "--duration=10m")
        beside = self.folder / ".token"
        beside.write_text(done.stdout)
        beside.replace(self.token_file)

    def arguments(self) -> list[str]:
        capabilities = self.container["securityContext"]["capabilities"]
        assert capabilities["drop"] == ["ALL"]
        bounding = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities["add"])])
        return [
            *("setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs", "--"),
            *(str(COMMAND), *self.container["args"]),
            *("--kubeconfig", str(self.kubeconfig), "--bpffs", str(self.bpffs)),
        ]

    def launch(self) -> None:
        downward = {"spec.nodeName": self.node.name}
        variables = {
            each["name"]: each.get("value") or downward[each["valueFrom"]["fieldRef"]["fieldPath"]]
            for each in self.container["env"]
        }
        with self.log_path.open("a") as log:
            self.process = self.node.popen(
                self.arguments(), stdout=log, stderr=subprocess.STDOUT, env=os.environ | variables
            )


@dataclass
class Service:
    """A Service as the API server made it. `answers` is every server that a connection to it may reach."""

    world: KubeWorld
    name: str
    vips: dict[int, str]

    def vip(self, family: int) -> str:
        return self.vips[family]

    def ask(self, family: int = 4, port: int = 80, protocol: Protocol = Protocol.TCP) -> str:
        """Who answers the client. Raises OSError."""
        return ask(self.world.client, self.vips[family], port, protocol).server

    def wait_for(self, names: Iterable[str], family: int = 4, *, rounds: int = 12, seconds: float = 20) -> None:
        """Until `rounds` new connections in a row reach exactly these servers, all of them (none: all refused)."""
        wanted = set(names)

        def settled() -> bool:
            return {self.ask(family) for _ in range(rounds * max(1, len(wanted)))} == wanted

        def refused() -> bool:
            with suppress(ConnectionRefusedError):
                return not self.ask(family)
            return True

        until(settled if wanted else refused, f"{self.name} to be served by {wanted or 'none'}", seconds=seconds)


@dataclass
class KubeWorld:
    """node1 has the daemon, the client and most servers; node2 runs pods only."""

    lab: Lab
    control: ControlPlane
    daemon: ClusterDaemon
    servers: dict[str, EchoServer] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def client(self) -> Pod:
        return self.lab.nodes["node1"].pods["client"]

    def pods(self, app: str, count: int = 1, *, node: str = "node1", **posted: Any) -> list[Pod]:
        """Start and post `count` pods of a new name; they serve what PORTS wants of them."""
        return [self.pod(app, node=node, **posted) for _ in range(count)]

    def pod(self, app: str, *, node: str = "node1", web: int = HTTP, ready: bool = True) -> Pod:
        """A pod that serves, and is posted with the label app. `web` is the number behind its port name."""
        pod = self.lab.nodes[node].pod(f"pod{next(self._numbers)}")
        server = self.servers[pod.name] = EchoServer(pod, pod.name)
        for address in (pod.ip4, pod.ip6):
            server.listen(address, web)
            server.listen(address, DNS, Protocol.UDP)
        ports = [{"name": "web", "containerPort": web}]
        manifest = {
            "metadata": {"name": pod.name, "labels": {"app": app}},
            "spec": {"nodeName": node, "containers": [{"name": "server", "image": "none", "ports": ports}]},
        }
        self.control.api("POST", object_path("Pod"), manifest)
        self.set_ready(pod, ready)
        return pod

    def set_ready(self, pod: Pod, ready: bool) -> None:
        """What a kubelet writes after a probe."""
        status = {
            "phase": "Running",
            "podIP": pod.ip4,
            "podIPs": [{"ip": pod.ip4}, {"ip": pod.ip6}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        }
        self.control.api("PATCH", f"{object_path('Pod', pod.name)}/status", {"status": status})

    def delete(self, pod: Pod, *, grace_seconds: int = 0) -> None:
        """Without grace the object goes at once; with some it is terminating until it is deleted without."""
        body = {"gracePeriodSeconds": grace_seconds}
        self.control.api("DELETE", object_path("Pod", pod.name), body)

    def end(self, pod: Pod) -> None:
        """Take the pod's processes and links away, as its runtime would."""
        self.servers.pop(pod.name).close()
        pod.node.remove(pod)

    def service(
        self,
        app: str,
        ports: Iterable[Mapping[str, Any]] = PORTS,
        *,
        labels: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> Service:
        """A dual-stack Service that selects app; its addresses are the API server's choice."""
        name = f"service-{next(self._numbers)}"
        wanted = {"selector": {"app": app}, "ports": list(ports), "ipFamilyPolicy": "RequireDualStack", **spec}
        made = self.control.api(
            "POST", object_path("Service"), {"metadata": {"name": name, "labels": dict(labels or {})}, "spec": wanted}
        )
        addresses = [ip for ip in made["spec"].get("clusterIPs", ()) if ip != "None"]
        return Service(self, name, {6 if ":" in ip else 4: ip for ip in addresses})

    def served(self) -> set[str]:
        """namespace/name of every Service in the daemon's tables."""
        return {row["service"].partition(":")[0] for row in self.daemon.json("services")}

    def close(self) -> None:
        for server in self.servers.values():
            server.close()
        if self.daemon.process is not None:
            self.daemon.stop()


def build_world(lab: Lab, control: ControlPlane) -> KubeWorld:
    """Nodes as lab and API objects, manifests applied, the daemon running on node1."""
    for name in ("node1", "node2"):
        lab.node(name)
        control.api("POST", object_path("Node"), {"metadata": {"name": name, "labels": KUBELET_LABELS}})
    lab.nodes["node1"].pod("client")
    control.kubectl("apply", "--server-side", "--kustomize", str(MANIFESTS))
    world = KubeWorld(lab, control, ClusterDaemon(lab.nodes["node1"], control))
    world.daemon.start()
    return world
