"""`cleanup`: everything of ours goes, nothing else is touched."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kproxy_ebpf.cli.common import Seconds, bpffs_option, cni_conf_option, option
from kproxy_ebpf.cni.conflist import PLUGIN
from kproxy_ebpf.contract.layouts import Switches
from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.model.services import Protocol
from kproxy_ebpf.observe.state import cni_socket, state_dir

if TYPE_CHECKING:
    from kproxy_ebpf.datapath.generations.generation import Generation

POLL_SECONDS = 0.2
TELL_SECONDS = 5.0


@click.command()
@bpffs_option
@option(
    "--drain-seconds",
    type=Seconds(0),
    default=10.0,
    show_default=True,
    help="How long open connections may take to end before they break; new ones are kube-proxy's at once.",
)
@cni_conf_option
def cleanup(bpffs: Path, drain_seconds: float, cni_conf_dir: Path) -> None:
    """Take all that is ours away; kube-proxy serves from then on.

    The way that breaks nothing: mode off, wait until `status` shows no links, stop the daemon, then this.
    """
    click.echo(clean(bpffs, drain_seconds, partial(click.echo, err=True), cni_conf_dir))


def clean(folder: Path, drain_seconds: float, tell: Callable[[str], object], cni_conf_dir: Path) -> str:
    """Detach, unpin, and forget what the daemon wrote; return what was done. Raises BusyError while a daemon runs.

    New connections are the host's at once; those that are open have `drain_seconds` to end. Before all else the plugin
    leaves the list of CNI plugins: pods could not start with nobody to answer it.
    """
    from kproxy_ebpf.datapath.generations import bpffs
    from kproxy_ebpf.datapath.generations.generation import current, remove_all
    from kproxy_ebpf.datapath.sockets.cgroup import is_attached

    if not (folder / bpffs.ROOT).exists():
        chain = _leave_chain(cni_conf_dir)
        _forget(folder)
        return f"nothing of ours is pinned in {folder}{chain}"
    with bpffs.NodeLock(folder):
        chain = _leave_chain(cni_conf_dir)
        broken = _drain(current(folder), drain_seconds, tell)
        what = "links and the cgroup tree" if is_attached(folder / bpffs.ROOT / "links") else "links"
        links = _detach(folder / bpffs.ROOT / "links")
        remove_all(folder)
        _forget(folder)
    cost = f"; {broken} open connections that they translated are broken" if broken else ""
    return f"programs taken off {links} {what}, programs and maps unpinned from {folder}{cost}{chain}"


def _leave_chain(conf_dir: Path) -> str:
    """Take the plugin out of the lists of CNI plugins; says from which."""
    from kproxy_ebpf.cni.folder import take_out

    files = take_out(conf_dir)
    where = ", ".join(str(file) for file in files)
    return f"; {PLUGIN} taken out of {where} (its program stays, for pods from before)" if files else ""


def _forget(folder: Path) -> None:
    """Remove what the daemon wrote for the commands, for plugins and for its next start."""
    cni_socket(folder).unlink(missing_ok=True)
    shutil.rmtree(state_dir(folder), ignore_errors=True)


def _drain(generation: Generation | None, seconds: float, tell: Callable[[str], object]) -> int:
    """Translate nothing new, and wait for what is open; return how many connections are left. UDP just moves."""
    from kproxy_ebpf.datapath.maps.settings import LiveSettings

    if generation is None:
        return 0
    with LiveSettings(generation) as live:
        live.switch(live.switches() & Switches.REDIRECT)
    deadline = time.monotonic() + seconds
    told = 0.0
    while (count := _open_connections(generation)) and time.monotonic() < deadline:
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            tell(f"waiting for {count} open connections to end, at most {deadline - told:.0f} s more")
        time.sleep(POLL_SECONDS)
    return count


def _open_connections(generation: Generation) -> int:
    from kproxy_ebpf.datapath.flows.records import live_connections

    flows = (flow for family in FAMILIES for flow in live_connections(generation, family))
    return sum(flow.tuple.protocol != Protocol.UDP for flow in flows)


def _detach(pins: Path) -> int:
    """Take all programs off, by filter and by pin: a BPF link ends with its pin. Before the maps, which they use."""
    from kproxy_ebpf.datapath.attach.clsact import Clsact
    from kproxy_ebpf.datapath.sockets.cgroup import PREFIX

    clsact = Clsact(pins)
    filtered = clsact.attached()
    for ifindex in filtered:
        clsact.detach(ifindex)
    linked = {pin.name.partition("-")[0] for pin in pins.iterdir() if not (pin.is_dir() or pin.name.startswith(PREFIX))}
    for pin in pins.iterdir():
        pin.rmdir() if pin.is_dir() else pin.unlink()
    return len(filtered) + len(linked)
