"""The folder that a daemon reads with `--manifests`: Services and EndpointSlices, one YAML file each.

Files are replaced atomically, as an operator's tools do (write beside, rename).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml

DEFAULT_PORTS = {"http": (80, "TCP", 8080), "dns": (53, "UDP", 5353)}


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One endpoint of a slice as a manifest gives it; None leaves a condition out."""

    address: str
    ready: bool | None = True
    serving: bool | None = None
    terminating: bool | None = None
    node_name: str | None = None

    def manifest(self) -> dict[str, Any]:
        conditions = {"ready": self.ready, "serving": self.serving, "terminating": self.terminating}
        given = {name: value for name, value in conditions.items() if value is not None}
        node = {"nodeName": self.node_name} if self.node_name else {}
        return {"addresses": [self.address], "conditions": given, **node}


# A Service's ports by name: (port, protocol, target port).
Ports = Mapping[str, tuple[int, str, int]]


class Manifests:
    """Writes and removes the objects of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def service(
        self,
        name: str,
        cluster_ips: Iterable[str],
        ports: Ports = DEFAULT_PORTS,
        *,
        ingress: Iterable[str] = (),
        **spec: Any,
    ) -> None:
        """Write a Service of namespace "default"; `spec` adds or replaces fields of its spec, `ingress` are the
        addresses of its load balancer.
        """
        addresses = list(cluster_ips)
        families = [f"IPv{ip_address(address).version}" for address in addresses]
        service_ports = [
            {"name": key, "port": port, "protocol": protocol, "targetPort": target}
            for key, (port, protocol, target) in ports.items()
        ]
        fields = {"clusterIP": addresses[0], "clusterIPs": addresses, "ipFamilies": families, "ports": service_ports}
        status = {"loadBalancer": {"ingress": [{"ip": address} for address in ingress]}}
        body = {"spec": {"type": "ClusterIP", **fields, **spec}, "status": status}
        self.write(f"service-{name}", _object("v1", "Service", name, body))

    def endpoints(
        self, service: str, endpoints: Iterable[str | EndpointSpec], ports: Ports = DEFAULT_PORTS, *, suffix: str = ""
    ) -> None:
        """Write one EndpointSlice per address family found in `endpoints` (addresses are ready endpoints).

        The slice of a family without an endpoint is removed. `suffix` tells several slices of a family apart.
        """
        specs = [EndpointSpec(item) if isinstance(item, str) else item for item in endpoints]
        slice_ports = [{"name": key, "port": target, "protocol": proto} for key, (_, proto, target) in ports.items()]
        for family in (4, 6):
            members = [spec.manifest() for spec in specs if ip_address(spec.address).version == family]
            name = f"{service}-ipv{family}{suffix}"
            if not members:
                self.remove(f"endpointslice-{name}")
                continue
            fields = {"addressType": f"IPv{family}", "ports": slice_ports, "endpoints": members}
            slice_ = _object("discovery.k8s.io/v1", "EndpointSlice", name, fields)
            slice_["metadata"]["labels"] = {"kubernetes.io/service-name": service}
            self.write(f"endpointslice-{name}", slice_)

    def write(self, name: str, manifest: Mapping[str, Any] | str) -> Path:
        """Put a manifest (text as it is, to write broken ones) in place of NAME.yaml, atomically."""
        text = manifest if isinstance(manifest, str) else yaml.safe_dump(manifest, sort_keys=False)
        target = self.folder / f"{name}.yaml"
        beside = self.folder / f".{name}.tmp"
        beside.write_text(text)
        beside.rename(target)
        return target

    def remove(self, name: str) -> None:
        self.folder.joinpath(f"{name}.yaml").unlink(missing_ok=True)

    def remove_service(self, name: str) -> None:
        """Remove a Service with all its slices."""
        self.remove(f"service-{name}")
        for path in self.folder.glob(f"endpointslice-{name}-ipv[46]*.yaml"):
            path.unlink()


def _object(api_version: str, kind: str, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": "default"}, **fields}
