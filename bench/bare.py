"""Our programs on a node without daemon and API server: compiled, loaded, one Service written into the maps by hand."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from kproxy_ebpf.contract.layouts import BackendState, FrontendFlags, Switches
from kproxy_ebpf.datapath.generations.generation import Generation, ensure
from kproxy_ebpf.datapath.generations.sources import Constants
from kproxy_ebpf.datapath.maps.service_tables import ServiceMaps
from kproxy_ebpf.datapath.maps.settings import LiveSettings
from kproxy_ebpf.lab import Node, Pod
from kproxy_ebpf.linux.bpf import Link
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, TableWrites

VIP = IPv4Address("10.96.100.1")
TCP, UDP = 6, 17
TCX = {"from_pod": 46, "to_pod": 47}  # enum bpf_attach_type: BPF_TCX_INGRESS, BPF_TCX_EGRESS


def one_service(backends: Sequence[str], port: int, backend_port: int) -> TableWrites:
    """TCP and UDP."""
    writes = TableWrites()
    writes.frontends[FrontendKey(VIP.packed, 0, 0)] = Frontend(3, 0, 0, FrontendFlags.VIP_ONLY)
    for service, protocol in ((1, TCP), (2, UDP)):
        ids = [service * 100 + number for number in range(len(backends))]
        for id_, address in zip(ids, backends, strict=True):
            packed = IPv4Address(address).packed
            writes.backends[id_] = Backend(packed, backend_port, BackendState.USABLE, 1, 1, service)
        writes.slots[service * 100] = tuple(ids)
        writes.frontends[FrontendKey(VIP.packed, port, protocol)] = Frontend(service, service * 100, len(ids))
    return writes


class Bare:
    """The datapath of one node, from the C sources in `sources` (None: this version's). Raises NodeError, LoadError."""

    def __init__(self, node: Node, sources: Path | None = None) -> None:
        self.bpffs = node.lab.folder / node.name / "bpffs"
        self.bpffs.mkdir(parents=True)
        subprocess.run(["mount", "-t", "bpf", "bpf", str(self.bpffs)], check=True, timeout=10)
        self.generation: Generation = ensure(self.bpffs, Constants(), sources)
        self.generation.activate()
        with LiveSettings(self.generation) as live:
            live.switch(Switches.TC)
        self._links: list[Link] = []

    def write(self, tables: TableWrites) -> None:
        maps = ServiceMaps(self.generation, 4)
        maps.apply(tables)
        maps.close()

    def attach(self, node: Node, pods: Sequence[Pod], families: Sequence[int] = (4,)) -> None:
        """The programs of these address families, at the pods' links."""
        with node.inside():
            for pod in pods:
                for family in families:
                    for name, where in TCX.items():
                        with self.generation.program(name, family) as program:
                            self._links.append(Link.create(program, node.ifindex(pod.host_link), where))
