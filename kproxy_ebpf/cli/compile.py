"""`compile`: what an image is given, so that its nodes need no compiler."""

from __future__ import annotations

from pathlib import Path

import click

from kproxy_ebpf.cli.common import option


@click.command(name="compile")
@option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Where they go; `run` finds them in the folder `compiled` beside the C sources.",
)
def compile_programs(output: Path) -> None:
    """Compile the programs for every kernel, for an image.

    Neither root nor any other privilege is needed, nor anything of the kernel that runs here.
    """
    from kproxy_ebpf.datapath.generations.build import compile_for_all_kernels
    from kproxy_ebpf.datapath.generations.sources import Constants

    compile_for_all_kernels(output, Constants(), lambda done, of: click.echo(f"compiled {done} of {of}", err=True))
