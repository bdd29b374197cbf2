"""The command line: `main` is the entry point of the package."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from kproxy_ebpf import __version__
from kproxy_ebpf.cli import check, cleanup, demo, explain, monitor, run, status, tables, trace
from kproxy_ebpf.cli.compile import compile_programs
from kproxy_ebpf.errors import KproxyError

EXIT_CODES = """\b
Exit codes (sysexits.h where there is one):
   0  done; for run: ended by SIGTERM or SIGINT, the datapath stays in force
  64  a flag or an argument is wrong
  66  the API server, kubeconfig or manifests folder can't be used; nothing of ours is pinned; no such Service
  69  the daemon does not answer
  70  the programs can't be loaded, or a part of the daemon died (see the log)
  71  this node lacks something: a kernel feature, headers, bpffs
  75  busy: another daemon, or another program on the port; try again
  77  not root, or a capability is missing
  78  a setting is not allowed, or the settings file can't be read
 130  interrupted"""


class ReaderGoneError(Exception):
    """Whoever reads the output has seen enough: `flows | head`."""


class Commands(click.Group):
    """A group that tells of a reader that is gone; click itself would end with 1, as after a failure."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _reader_gone():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _reader_gone():
            return super().invoke(ctx)


@contextmanager
def _reader_gone() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderGoneError from None


@click.group(cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kproxy-ebpf")
def commands() -> None:
    """Kubernetes Services for pods, in tc-eBPF, beside kube-proxy."""


for command in (
    run.run,
    check.check,
    status.status,
    tables.services,
    tables.backends,
    tables.flows,
    explain.explain,
    trace.trace,
    monitor.monitor,
    cleanup.cleanup,
    demo.demo,
    compile_programs,
):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Errors become one line on standard error and their own exit code, never a traceback."""
    try:
        result = commands.main(arguments, prog_name="kproxy-ebpf", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(os.EX_OK)
    except click.ClickException as error:
        _fail(f"{error.format_message()} (see --help)", os.EX_USAGE)
    except KproxyError as error:
        _fail(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except PermissionError as error:
        _fail(f"{error.filename or 'BPF'}: {error.strerror or error}: run as root", os.EX_NOPERM)
    except ReaderGoneError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(os.EX_OK)
    except OSError as error:
        _fail(str(error), os.EX_OSERR)
    sys.exit(result if isinstance(result, int) else os.EX_OK)


def _fail(sentence: str, code: int) -> None:
    click.echo(f"kproxy-ebpf: error: {sentence}", err=True)
    sys.exit(code)
