"""The paths that a request can take to a server, by name: what their nodes run. Ours: all settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

from kproxy_ebpf.lab import CLUSTER_CIDRS

MODES = ("tc", "socket", "hybrid")
FORWARDINGS = ("stack", "redirect")


@dataclass(frozen=True, slots=True)
class Path:
    """`kube_proxy`: the mode of the one that the node runs, "" for none. `settings`: our daemon's, None for no daemon.
    `tracked`: the host tracks connections, as it does under any firewall and beside a kube-proxy.
    """

    name: str
    label: str
    kube_proxy: str = ""
    settings: Mapping[str, str] | None = field(default=None, hash=False)
    tracked: bool = False

    @property
    def is_ours(self) -> bool:
        return self.settings is not None

    @property
    def balances(self) -> bool:
        return self.is_ours or bool(self.kube_proxy)


def our_name(mode: str, forwarding: str) -> str:
    return f"{mode}-{forwarding}"


def _settings(mode: str, forwarding: str) -> dict[str, str]:
    return {"mode": mode, "forwarding": forwarding, "cluster-cidr": CLUSTER_CIDRS}


def _ours(mode: str, forwarding: str) -> Path:
    label = f"kproxy-ebpf {mode}, {forwarding}"
    return Path(our_name(mode, forwarding), label, settings=_settings(mode, forwarding))


BASELINE, LOOPBACK, BESIDE = "direct", "loopback", "beside"
NFTABLES, IPTABLES = "nftables", "iptables"
PLAIN, BEST = our_name("tc", "stack"), our_name("hybrid", "redirect")

_ALL = (
    Path(LOOPBACK, "loopback: the TCP stack alone"),
    Path(BASELINE, "direct pod IP, tracked by the host", tracked=True),
    Path("untracked", "direct pod IP, untracked"),
    *(_ours(mode, forwarding) for mode, forwarding in product(MODES, FORWARDINGS)),
    Path(
        BESIDE,
        "kproxy-ebpf hybrid, redirect, beside kube-proxy nftables",
        kube_proxy=NFTABLES,
        settings=_settings("hybrid", "redirect"),
    ),
    Path(NFTABLES, "kube-proxy nftables", kube_proxy=NFTABLES),
    Path(IPTABLES, "kube-proxy iptables", kube_proxy=IPTABLES),
)
PATHS = {path.name: path for path in _ALL}  # in the order of the report
