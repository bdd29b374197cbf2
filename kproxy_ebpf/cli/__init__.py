"""The command line: `main` is the entry point of the package."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from kproxy_ebpf import __version__
from kproxy_ebpf.errors import KproxyError

EXIT_CODES = """\b
Exit codes (sysexits.h where there is one):
   0  done; for run: ended by SIGTERM or SIGINT, the datapath stays in force
  64  a flag or an argument is wrong
  66  the API server, kubeconfig or manifests folder can't be used; nothing of ours is pinned; no such Service or Pod
  69  the daemon does not answer
  70  the programs can't be loaded, or a part of the daemon died (see the log)
  71  this node lacks something: a kernel feature, headers, bpffs
  75  busy: another daemon, or another program on the port; try again
  77  not root, or a capability is missing
  78  a setting is not allowed, or the settings file can't be read
 130  interrupted"""


COMMANDS = {
    "backends": "tables.backends",
    "check": "check.check",
    "cleanup": "cleanup.cleanup",
    "compile": "compile.compile_programs",
    "demo": "demo.demo",
    "explain": "explain.explain",
    "flows": "tables.flows",
    "install-cni": "install_cni.install_cni",
    "monitor": "monitor.monitor",
    "run": "run.run",
    "services": "tables.services",
    "status": "status.status",
    "trace": "trace.trace",
}
"""Where each command stands in this package."""


class ReaderGoneError(Exception):
    """Whoever reads the output has seen enough: `flows | head`."""


class Commands(click.Group):
    """A group that imports a command when it is asked for: the daemon is up sooner, and smaller, without the others.

    It tells of a reader that is gone; click itself would end with 1, as after a failure.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click calls it with a context
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(".")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), function)
        return command

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
