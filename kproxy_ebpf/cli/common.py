"""What the commands share: flags with their variables, output for people and for programs.

Nothing here imports the daemon or the datapath: `--help` has to be quick.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from kproxy_ebpf.cni.binary import BIN_DIR
from kproxy_ebpf.cni.folder import CONF_DIR
from kproxy_ebpf.observe.state import DEFAULT_BPFFS

Command = TypeVar("Command", bound=Callable[..., Any])


def option(flag: str, *names: str, **attributes: Any) -> Callable[[Command], Command]:
    """A click option that can also be given as a variable: ``--node-name`` as ``KPROXY_NODE_NAME``."""
    variable = "KPROXY_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, *names, envvar=variable, show_envvar=True, **attributes)


class Seconds(click.FloatRange):
    """A number of seconds, at most a week. FloatRange lets nan pass, which no clock can wait for."""

    def __init__(self, least: float) -> None:
        super().__init__(least, 7 * 86400)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises click.BadParameter."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return number


def _folder_option(flag: str, default: Path | None, help_: str) -> Callable[[Command], Command]:
    """A folder that need not be readable: whoever opens it says better what is amiss."""
    path = click.Path(path_type=Path, readable=False)
    return option(flag, type=path, default=default, show_default=default is not None, metavar="DIR", help=help_)


bpffs_option = _folder_option(
    "--bpffs", DEFAULT_BPFFS, "Where the BPF file system is mounted; what is ours lies below kproxy-ebpf/."
)
cache_option = _folder_option(
    "--cache-dir", None, "Where compiled programs are kept, a folder of root alone. [default: /var/lib/kproxy-ebpf]"
)
cni_conf_option = _folder_option(
    "--cni-conf-dir", CONF_DIR, "Where the container runtime has its lists of CNI plugins."
)
cni_bin_option = _folder_option("--cni-bin-dir", BIN_DIR, "Where the container runtime has its CNI plugins.")

metrics_address_option = option(
    "--metrics-address",
    default="127.0.0.1:10349",
    show_default=True,
    metavar="HOST:PORT",
    help="Where the daemon serves /metrics, as told to run.",
)

output_option = click.option(
    "-o",
    "--output",
    envvar="KPROXY_OUTPUT",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people or JSON for programs.",
)


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], output: str) -> None:
    """Print `rows`: as a JSON array with all their keys, or as a table of `columns`."""
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate

    table = [[_text(row.get(column, "")) for column in columns] for row in rows]
    headers = [column.upper().replace("_", " ") for column in columns]
    click.echo(tabulate(table, headers=headers, tablefmt="plain", disable_numparse=True))


def show_json(value: Any) -> None:
    """Print one JSON value."""
    click.echo(json.dumps(value, indent=2))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
