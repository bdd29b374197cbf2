"""Four nodes that all claim to be the Node "worker": two of ours, and one for each mode of the real kube-proxy.

They see the same objects, so they must answer alike. The endpoints stand on a fifth node, so that what is local is
only what their slices say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cases import ELSEWHERE, HERE, OTHER_ZONE, ZONE, Ask, Case, End

from kproxy_ebpf.kube.kinds.endpoint_slice import ANNOTATION_TRIGGER_TIME
from kproxy_ebpf.lab import Lab, Node, Pod
from kproxy_ebpf.lab.control_plane import ControlPlane, object_path
from kproxy_ebpf.lab.daemon import Daemon
from kproxy_ebpf.lab.kube_proxy import KubeProxy
from kproxy_ebpf.lab.traffic import TRY_SECONDS, EchoServer, ask
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

OURS, OURS_AT_TC = "ours", "ours-tc"
OUR_MODES = {OURS: "hybrid", OURS_AT_TC: "tc"}
MODES = ("nftables", "iptables")
NODE_ADDRESSES = {
    4: "10.200.1.1",
    6: "fd00:200:1::1",
}  # on each of the four: kube-proxy takes node ports on these only
UNALLOCATED = {4: "10.96.255.250", 6: "fd00:10:96::fffa"}
PODS = ("e1", "e2", "e3", "e4")
TARGET_PORTS = (8080, 8443)
QUESTIONS = 64  # of four endpoints, one is missed once in 25 million; there are some thousand such questions
# kube-proxy's ICMPv6 answer to a SYN may come while connect(2) still holds the socket; the kernel then only notes it,
# and the refusal is that of the SYN's first retransmission, a second later.
SILENCE_SECONDS = 1.6
SYNC_SECONDS = 60


class Seen(NamedTuple):
    """What a pod observes: the endpoints that answered, or how it failed, and where the answers saw it come from."""

    endpoints: frozenset[str] | str
    source: str  # "client", "node", or "" where nothing answered


@dataclass
class Made:
    """A case's Service, as the API server made it."""

    name: str
    addresses: dict[tuple[str, int], str]  # (via, family)
    node_ports: dict[Protocol, int] = field(default_factory=dict)


class ApiDaemon(Daemon):
    """Our daemon, fed by the API server; it speaks for the Node "worker"."""

    def __init__(self, node: Node, control: ControlPlane, mode: str = "hybrid") -> None:
        super().__init__(node, settings={"mode": mode})
        self.control = control

    def arguments(self) -> list[str]:
        words = super().arguments()
        at = words.index("--manifests")
        words[at : at + 2] = ["--kubeconfig", str(self.control.kubeconfig())]
        words[words.index("--node-name") + 1] = HERE
        return words


class Contenders:
    """The lab, the control plane, the objects of all cases, and the four clients."""

    def __init__(self, lab: Lab, control: ControlPlane) -> None:
        self.lab = lab
        self.control = control
        self.nodes = {name: lab.node(name) for name in (*OUR_MODES, *MODES)}
        self.clients = {name: node.pod("client") for name, node in self.nodes.items()}
        ends = lab.node("ends")
        self.pods: dict[str, Pod] = {name: ends.pod(name) for name in PODS}
        self.servers = [self._serve(pod) for pod in self.pods.values()]
        self.made: dict[str, Made] = {}
        for node in self.nodes.values():
            node.sysctl({"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0"})
            node.ip(*(f"addr add {address} dev lo" for address in NODE_ADDRESSES.values()))
        self._post_nodes()
        self.proxies = [KubeProxy(self.nodes[mode], control, mode, node_name=HERE) for mode in MODES]
        self.daemons = [ApiDaemon(self.nodes[name], control, mode) for name, mode in OUR_MODES.items()]

    def start(self, cases: Iterable[Case]) -> None:
        """Build every case, start the contenders, wait until all of them serve what was built last."""
        for number, case in enumerate(cases, 1):
            self.made[case.name] = self.build(case, number)
        for proxy in self.proxies:
            proxy.start()
        for daemon in self.daemons:
            daemon.launch()
        for daemon in self.daemons:
            daemon.wait_ready()
        last = self.build(Case("last", ((End(PODS[0]),),)), 250)
        for name, client in self.clients.items():
            for family in (4, 6):
                until(
                    lambda client=client, family=family: ask(
                        client, last.addresses["cluster", family], 80, timeout=TRY_SECONDS
                    ),
                    f"{name} to serve the last Service, IPv{family}",
                    seconds=SYNC_SECONDS,
                )

    def build(self, case: Case, number: int) -> Made:
        """Post a case's Service and slices."""
        spec: dict[str, Any] = {
            "ports": [
                {"name": "web", "port": 80, "targetPort": 8080, "protocol": "TCP"},
                {"name": "dns", "port": 80, "targetPort": 8080, "protocol": "UDP"},
            ],
            "ipFamilyPolicy": "RequireDualStack",
            "externalIPs": [f"198.51.100.{number}", f"2001:db8:e::{number:x}"],
            **case.spec,
        }
        path = object_path("Service")
        service = self.control.api(
            "POST", path, {"metadata": {"name": case.name, "labels": {**case.labels}}, "spec": spec}
        )
        made = Made(case.name, {("unallocated", family): address for family, address in UNALLOCATED.items()})
        for address in service["spec"]["clusterIPs"]:
            made.addresses["cluster", 6 if ":" in address else 4] = address
        made.addresses["external", 4], made.addresses["external", 6] = spec["externalIPs"]
        made.addresses["load-balancer", 4], made.addresses["load-balancer", 6] = (
            f"192.0.2.{number}",
            f"2001:db8:1b::{number:x}",
        )
        made.node_ports = {Protocol[port["protocol"]]: port.get("nodePort", 0) for port in service["spec"]["ports"]}
        if spec.get("type") == "LoadBalancer":
            ingress = [{"ip": made.addresses["load-balancer", family]} for family in (4, 6)]
            if case.ip_mode:
                ingress = [{**each, "ipMode": case.ip_mode} for each in ingress]
            self.control.api("PATCH", f"{path}/{case.name}/status", {"status": {"loadBalancer": {"ingress": ingress}}})
        for position, ends in enumerate(case.ends):
            port = case.target_ports[position] if case.target_ports else TARGET_PORTS[0]
            for family in (4, 6):
                self._post_slice(case, f"{case.name}-{position}-v{family}", ends, port, family)
        return made

    def observe(self, name: str, made: Made, question: Ask, family: int, protocol: Protocol) -> Seen:
        """Ask one contender the question, often enough to see every endpoint."""
        address, port = self._target(name, made, question, family, protocol)
        client = self.clients[name]
        endpoints: set[str] = set()
        sources: set[str] = set()
        for _ in range(QUESTIONS):
            try:
                answer = ask(client, address, port, protocol, timeout=SILENCE_SECONDS)
            except TimeoutError:
                return Seen("silence", "")
            except ConnectionRefusedError:
                return Seen("refused", "")
            except OSError as error:
                return Seen(error.strerror or repr(error), "")
            endpoints.add(answer.server)
            sources.add("client" if answer.client in (client.ip4, client.ip6) else "node")
        return Seen(frozenset(endpoints), "+".join(sorted(sources)))

    def observe_all(self, made: Made, question: Ask, family: int, protocol: Protocol) -> dict[str, Seen]:
        with ThreadPoolExecutor(len(self.clients)) as pool:
            found = {name: pool.submit(self.observe, name, made, question, family, protocol) for name in self.clients}
            return {name: future.result() for name, future in found.items()}

    def _target(self, name: str, made: Made, question: Ask, family: int, protocol: Protocol) -> tuple[str, int]:
        address = {
            "node": NODE_ADDRESSES[family],
            "uplink": uplink(self.nodes[name], family),
            "another-node": uplink(self.nodes["iptables"], family),
        }.get(question.via)
        if address:
            return address, made.node_ports[protocol]
        return made.addresses[question.via, family], question.port

    def _serve(self, pod: Pod) -> EchoServer:
        server = EchoServer(pod, pod.name)
        for address in (pod.ip4, pod.ip6):
            for port in TARGET_PORTS:
                server.listen(address, port)
                server.listen(address, port, Protocol.UDP)
        return server

    def _post_nodes(self) -> None:
        for name, zone in ((HERE, ZONE), (ELSEWHERE, OTHER_ZONE)):
            labels = {"topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": name}
            self.control.api("POST", object_path("Node"), {"metadata": {"name": name, "labels": labels}})
        addresses = [{"type": "InternalIP", "address": ip} for ip in NODE_ADDRESSES.values()]
        self.control.api("PATCH", f"{object_path('Node', HERE)}/status", {"status": {"addresses": addresses}})

    def _post_slice(self, case: Case, name: str, ends: Iterable[End], port: int | None, family: int) -> None:
        labels = {"kubernetes.io/service-name": case.name, **case.slice_labels}
        number = {} if port is None else {"port": port}
        changed = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        body = {
            "metadata": {"name": name, "labels": labels, "annotations": {ANNOTATION_TRIGGER_TIME: changed}},
            "addressType": f"IPv{family}",
            "ports": [
                {"name": "web", "protocol": "TCP", **number},
                {"name": "dns", "protocol": "UDP", **number},
            ],
            "endpoints": [end.manifest(self.pods[end.pod].address(family)) for end in ends],
        }
        self.control.api("POST", object_path("EndpointSlice"), body)

    def close(self) -> None:
        for daemon in self.daemons:
            if daemon.process is not None:
                daemon.stop()
        for proxy in self.proxies:
            if proxy.process is not None:
                proxy.stop()
        for server in self.servers:
            server.close()


def uplink(node: Node, family: int) -> str:
    return {4: node.ip4, 6: node.ip6}[family]


@contextmanager
def contenders(cases: Iterable[Case]) -> Iterator[Contenders]:
    with Lab() as lab, ControlPlane(lab.net, lab.folder / "control-plane") as control:
        made = Contenders(lab, control)
        try:
            made.start(cases)
            yield made
        finally:
            made.close()
