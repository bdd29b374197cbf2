"""The side of the daemon that faces the cluster: where its state and the settings come from, where warnings go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kproxy_ebpf.daemon.options import Options
from kproxy_ebpf.errors import UsageError
from kproxy_ebpf.kube.kinds.common import Scope
from kproxy_ebpf.kube.recorder import About, EventRecorder
from kproxy_ebpf.kube.source import ClusterSource, ConfigMapSource
from kproxy_ebpf.model.services import Service
from kproxy_ebpf.model.snapshot import Kind, Refused

if TYPE_CHECKING:
    from kproxy_ebpf.kube.client import Client


@dataclass(frozen=True, slots=True)
class Cluster:
    """The API server, or a folder of manifests, which has neither ConfigMaps nor Events."""

    source: ClusterSource
    node_name: str
    config_map: ConfigMapSource | None = None
    recorder: EventRecorder | None = None

    def warn_settings(self, sentence: str) -> None:
        """Tell whoever looks at the node's Events that its settings are refused."""
        if self.recorder is not None:
            self.recorder.record(About(Kind.NODE, self.node_name), "SettingsRefused", sentence)

    def warn_refused(self, refused: Refused) -> None:
        """Tell whoever looks at the object's Events that it is refused."""
        if self.recorder is not None:
            ref = refused.ref
            self.recorder.record(About(ref.kind, ref.name, ref.namespace, ref.uid), "Refused", refused.reason)

    def warn_conflict(self, loser: Service, sentence: str) -> None:
        """Tell whoever looks at the Service's Events that an older one has what it claims."""
        if self.recorder is not None:
            about = About(Kind.SERVICE, loser.key.name, loser.key.namespace, loser.uid)
            self.recorder.record(about, "FrontendTaken", sentence)


@asynccontextmanager
async def connected(options: Options) -> AsyncIterator[Cluster]:
    """The cluster that the flags name. Raises ClusterError, UsageError."""
    scope = Scope(options.node_name, options.proxy_name)
    if options.manifests is not None:
        from kproxy_ebpf.kube.manifests import ManifestSource

        yield Cluster(ManifestSource(options.manifests, scope), options.node_name)
        return
    from kproxy_ebpf.kube.client import Client
    from kproxy_ebpf.kube.source import ApiSource

    client = await (Client.from_kubeconfig(options.kubeconfig) if options.kubeconfig else Client.in_cluster())
    try:
        source = ApiSource(client, scope)
        recorder = EventRecorder(client, options.node_name)
        yield Cluster(source, options.node_name, _config_map(client, options.config_map), recorder)
    finally:
        await client.aclose()


def _config_map(client: Client, name: str | None) -> ConfigMapSource | None:
    if name is None:
        return None
    namespace, slash, name = name.partition("/")
    if not (namespace and slash and name):
        raise UsageError(f"--config-map {namespace!r} is no ConfigMap: write NAMESPACE/NAME")
    return ConfigMapSource(client, namespace, name)


def source_problems(source: ClusterSource, config_map: ConfigMapSource | None) -> dict[str, str | None]:
    """By topic, why changes can't be seen at this moment; None where they can."""
    sources = {"source": ("the cluster", source.last_error)}
    if config_map is not None:
        sources["settings-source"] = ("the settings", config_map.last_error)
    return {
        topic: f"what changes in {what} can't be seen: {error}" if error else None
        for topic, (what, error) in sources.items()
    }
