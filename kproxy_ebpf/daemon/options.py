"""The flags of `run`, as the daemon takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kproxy_ebpf.cni.binary import BIN_DIR
from kproxy_ebpf.cni.folder import CONF_DIR
from kproxy_ebpf.datapath.generations.sources import Constants


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Fixed while the daemon runs; what may change meanwhile is config.Settings.

    `attach` is auto, tcx or clsact. `sync_period` is in seconds. With `manifests` the cluster comes from that folder,
    else from the API server of `kubeconfig`, or of the pod that the daemon runs in.
    """

    node_name: str
    bpffs: Path
    kubeconfig: Path | None = None
    manifests: Path | None = None
    config: Path | None = None
    config_map: str | None = None
    cgroup: Path | None = None
    cache_dir: Path | None = None
    cni_conf_dir: Path = CONF_DIR
    cni_bin_dir: Path = BIN_DIR
    attach: str = "auto"
    proxy_name: str = ""
    sync_period: float = 30.0
    health_address: str = ":10356"
    metrics_address: str = "127.0.0.1:10349"
    constants: Constants = field(default_factory=Constants)
