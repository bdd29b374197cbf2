"""Commands about this node: `check`, `monitor`, `cleanup`, `demo`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from kproxy_ebpf.cli.common import bpffs_option, option, output_option, show_json


@click.command()
@bpffs_option
@output_option
def check(bpffs: Path, output: str) -> None:
    """Say what this node offers and lacks, and what follows."""
    from kproxy_ebpf.datapath.checks import check_node

    checks = check_node(bpffs)
    if output == "json":
        show_json([asdict(each) for each in checks])
    for each in checks if output == "table" else ():
        mark = "ok" if each.ok else "MISSING" if each.required else "no"
        click.echo(f"{mark:8} {each.name:13} {each.detail}" + ("" if each.ok else f": {each.consequence}"))
    sys.exit(os.EX_OK if all(each.ok or not each.required for each in checks) else os.EX_OSERR)


@click.command()
@bpffs_option
@output_option
@option("--all", "every", is_flag=True, help="Every packet, also those of flows known already and those left alone.")
def monitor(bpffs: Path, output: str, every: bool) -> None:
    """Show what happens to packets, live, until interrupted."""
    import asyncio

    from kproxy_ebpf.cli.monitor import follow
    from kproxy_ebpf.cli.tables import generation_in_force

    with suppress(asyncio.CancelledError):
        asyncio.run(follow(generation_in_force(bpffs), every=every, as_json=output == "json"))


@click.command()
@bpffs_option
@option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="How long open connections may take to end before they break; new ones are kube-proxy's at once.",
)
def cleanup(bpffs: Path, drain_seconds: float) -> None:
    """Take all that is ours away; kube-proxy serves from then on.

    The way that breaks nothing: mode off, wait until `status` shows no links, stop the daemon, then this.
    """
    from kproxy_ebpf.cli.cleanup import clean

    click.echo(clean(bpffs, drain_seconds, partial(click.echo, err=True)))


@click.command()
def demo() -> None:
    """Show a small cluster of network namespaces at work."""
    from kproxy_ebpf.lab.demo import run

    run()


COMMANDS = (check, monitor, cleanup, demo)
