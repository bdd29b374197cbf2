"""`check`: what this node offers and lacks."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from kproxy_ebpf.cli.common import (
    bpffs_option,
    cache_option,
    cni_bin_option,
    cni_conf_option,
    output_option,
    show_json,
)


@click.command()
@bpffs_option
@cache_option
@cni_conf_option
@cni_bin_option
@output_option
def check(bpffs: Path, cache_dir: Path | None, cni_conf_dir: Path, cni_bin_dir: Path, output: str) -> None:
    """Say what this node offers and lacks, and what follows."""
    from kproxy_ebpf.datapath.checks import check_node, cni_chain

    checks = [*check_node(bpffs, cache_dir), cni_chain(cni_conf_dir, cni_bin_dir)]
    if output == "json":
        show_json([asdict(each) for each in checks])
    for each in checks if output == "table" else ():
        mark = "ok" if each.ok else "MISSING" if each.required else "no"
        click.echo(f"{mark:8} {each.name:13} {each.detail}" + ("" if each.ok else f": {each.consequence}"))
    sys.exit(os.EX_OK if all(each.ok or not each.required for each in checks) else os.EX_OSERR)
