"""`services`, `backends`, `flows`: what the pinned maps hold, whether or not the daemon runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kproxy_ebpf.cli.common import bpffs_option, option, output_option, show
from kproxy_ebpf.cli.pinned import generation_in_force, service_names
from kproxy_ebpf.cli.rows import (
    BACKEND_COLUMNS,
    FLOW_COLUMNS,
    SERVICE_COLUMNS,
    Names,
    backend_rows,
    flow_rows,
    service_rows,
)
from kproxy_ebpf.contract.maps import FAMILIES

if TYPE_CHECKING:
    from kproxy_ebpf.model.service_tables import TableContents

Row = dict[str, Any]


@click.command()
@bpffs_option
@output_option
def services(bpffs: Path, output: str) -> None:
    """List the frontends: every VIP and port with what it leads to."""
    show(list(_table_rows(bpffs, service_rows)), SERVICE_COLUMNS, output)


@click.command()
@bpffs_option
@output_option
def backends(bpffs: Path, output: str) -> None:
    """List the backends with their state."""
    show(list(_table_rows(bpffs, backend_rows)), BACKEND_COLUMNS, output)


@click.command()
@bpffs_option
@output_option
@option("--limit", type=click.IntRange(1), metavar="N", help="Stop after N connections.")
def flows(bpffs: Path, output: str, limit: int | None) -> None:
    """List the connections that are being translated."""
    from kproxy_ebpf.datapath.flows.records import read_flows

    generation = generation_in_force(bpffs)
    names = service_names(bpffs)
    rows = (row for family in FAMILIES for row in flow_rows(read_flows(generation, family), names[family]))
    show(list(islice(rows, limit)), FLOW_COLUMNS, output)


def _table_rows(bpffs: Path, rows: Callable[[int, TableContents, Names], Iterator[Row]]) -> Iterator[Row]:
    from kproxy_ebpf.datapath.maps.service_tables import ServiceMaps

    generation = generation_in_force(bpffs)
    names = service_names(bpffs)
    for family in FAMILIES:
        with closing(ServiceMaps(generation, family)) as maps:
            yield from rows(family, maps.read(), names[family])
