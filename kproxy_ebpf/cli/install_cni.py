"""`install-cni`: puts the CNI plugin where container runtimes look for it."""

from __future__ import annotations

from pathlib import Path

import click

from kproxy_ebpf.cli.common import cni_bin_option
from kproxy_ebpf.errors import UsageError


@click.command("install-cni")
@cni_bin_option
def install_cni(cni_bin_dir: Path) -> None:
    """Put the CNI plugin into the node's folder of plugins.

    It changes nothing for pods: with the setting `cni: chain`, the daemon puts the plugin into the list that the node
    uses. `cleanup` takes it out of there and leaves the program, which pods from before may be ended with.
    """
    from kproxy_ebpf.cni.binary import install
    from kproxy_ebpf.cni.conflist import PLUGIN

    if not cni_bin_dir.is_dir():
        raise UsageError(f"{cni_bin_dir} is no folder: name the node's folder of CNI plugins with --cni-bin-dir")
    what = "put into" if install(cni_bin_dir) else "is already in"
    click.echo(f"{PLUGIN} {what} {cni_bin_dir}")
