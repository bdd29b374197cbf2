"""`run`: the daemon itself."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kproxy_ebpf.cli.common import (
    Command,
    Seconds,
    bpffs_option,
    cache_option,
    cni_bin_option,
    cni_conf_option,
    option,
)
from kproxy_ebpf.contract.maps import FLOW_TABLES, SERVICE_TABLES
from kproxy_ebpf.datapath.generations.sources import Constants
from kproxy_ebpf.errors import UsageError

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


SIZES = Constants()
TABLES = (*SERVICE_TABLES, *FLOW_TABLES)


def _size(flag: str, default: int, what: str) -> Callable[[Command], Command]:
    limits = click.IntRange(1, 1 << 26)
    help_ = f"Room for {what}, per address family."
    return option(flag, type=limits, default=default, show_default=True, metavar="N", help=help_)


@click.command()
@option("--node-name", metavar="NAME", help="Name of this node's Node object. [default: the host name]")
@option("--kubeconfig", type=FILE, metavar="FILE", help="How to reach the API server. [default: as a pod does]")
@option("--manifests", type=FOLDER, metavar="DIR", help="Take Services and EndpointSlices from YAML files instead.")
@option("--config", type=FILE, metavar="FILE", help="Settings as YAML, watched.")
@option("--config-map", metavar="NS/NAME", help="Settings as a ConfigMap, watched.")
@bpffs_option
@cache_option
@cni_conf_option
@cni_bin_option
@option("--cgroup", type=FOLDER, metavar="DIR", help="The cgroup v2 tree. [default: found in the mounts]")
@option("--attach", type=click.Choice(["auto", "tcx", "clsact"]), default="auto", show_default=True,
        help="How programs are attached to links; auto takes TCX where the kernel has it.")  # fmt: skip
@option("--proxy-name", default="", metavar="NAME",
        help="Serve the Services that label service-proxy-name gives to NAME. [default: those without it]")  # fmt: skip
@option("--sync-period", type=Seconds(1), default=30.0, show_default=True, metavar="SECONDS",
        help="The longest a change may take to be written; /healthz fails after twice this.")  # fmt: skip
@option("--health-address", default=":10356", show_default=True, metavar="HOST:PORT",
        help="Serves /healthz, /livez and /readyz.")  # fmt: skip
@option("--metrics-address", default="127.0.0.1:10349", show_default=True, metavar="HOST:PORT", help="Serves /metrics.")
@_size("--max-frontends", SIZES.frontends_max, "frontends (VIP, port and protocol)")
@_size("--max-backends", SIZES.backends_max, "backends")
@_size("--max-slots", SIZES.slots_max, "slots (places of backends in balanced sets)")
@_size("--max-flows", SIZES.flows_max, "flow entries, two per connection")
@_size("--max-affinity", SIZES.affinity_max, "clients remembered for Services with session affinity")
@_size("--max-source-ranges", SIZES.source_ranges_max, "source ranges of load balancers")
def run(**flags: Any) -> None:
    """Serve the pods of this node until SIGTERM.

    The cluster comes from the API server, or from a folder with --manifests. The datapath stays in force when the
    daemon ends; `cleanup` removes it.
    """
    if flags["manifests"] and flags["kubeconfig"]:
        raise UsageError("--manifests and --kubeconfig exclude each other: a daemon has one source")
    if flags["config"] and flags["config_map"]:
        raise UsageError("--config and --config-map exclude each other: settings have one source")
    if flags["config_map"] and flags["manifests"]:
        raise UsageError("--config-map needs an API server: use --config with --manifests")
    flags["node_name"] = flags["node_name"] or socket.gethostname().lower()
    sizes = {f"{table}_max": flags.pop(f"max_{table}") for table in TABLES}
    import_structlog()
    from kproxy_ebpf.daemon import Options, start

    start(Options(**flags, constants=Constants(**sizes)))


def import_structlog() -> None:
    """Before anybody else does, and without `rich`: structlog takes that in wherever it is installed, for tracebacks on
    a terminal, and has no option to leave it out. To a daemon it is 3 MB for nothing.
    """
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # to an import, it is not installed
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
