"""`demo`: a small cluster of network namespaces."""

from __future__ import annotations

import click


@click.command()
def demo() -> None:
    """Show a small cluster of network namespaces at work."""
    from kproxy_ebpf.lab.demo import run

    run()
