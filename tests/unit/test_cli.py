"""The command line: flags, variables, errors in one line with their code."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from kproxy_ebpf import cli
from kproxy_ebpf.cli import tables
from kproxy_ebpf.errors import BusyError

HEAVY = ("bcc", "kubernetes_asyncio", "aiohttp", "pydantic", "pyroute2", "prometheus_client", "uvloop", "tabulate")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, kproxy_ebpf.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(HEAVY) & set(modules)


def test_the_daemon_imports_nothing_that_it_does_not_use() -> None:
    """As long as these are not asked for: a folder that is watched, an API server."""
    code = (
        "import sys; from kproxy_ebpf.cli.run import import_structlog as first; first(); import kproxy_ebpf.daemon.core"
    )
    listed = f"{code}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout.split()
    unused = {"bcc", "kubernetes_asyncio", "pyroute2.ndb", "rich", "sqlite3", "tabulate", "watchfiles"}
    assert "structlog" in modules
    assert not unused & set(modules)


def test_help_documents_exit_codes() -> None:
    result = CliRunner().invoke(cli.commands, ["--help"])
    assert result.exit_code == 0
    assert "75  busy" in result.output


def test_no_summary_is_cut_off() -> None:
    summaries = CliRunner().invoke(cli.commands, ["--help"], terminal_width=80).output.partition("Commands:")[2]
    assert summaries
    assert "..." not in summaries


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_flag_has_a_variable(name: str) -> None:
    command = cli.commands.get_command(click.Context(cli.commands), name)
    assert command is not None
    assert command.name == name
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "help":
            assert parameter.envvar == f"KPROXY_{parameter.opts[-1].strip('-').replace('-', '_').upper()}"


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "--attach", "magic"], 64, "--attach"),
        (["dance"], 64, "dance"),
        (["run", "--sync-period", "nan"], 64, "nan is no number of seconds"),
        (["run", "--sync-period", "inf"], 64, "sync-period"),
        (["cleanup", "--drain-seconds", "nan"], 64, "nan is no number of seconds"),
        (["run", "--manifests", "/x", "--kubeconfig", "/y"], 64, "exclude each other"),
        (["run", "--config", "/x", "--config-map", "a/b"], 64, "exclude each other"),
        (["run", "--manifests", "/x", "--config-map", "a/b"], 64, "needs an API server"),
        (["services", "--bpffs", "/nonexistent"], 66, "nothing of ours is pinned in /nonexistent"),
    ],
)
def test_an_error_is_one_line_with_its_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    assert run_main(monkeypatch, *arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kproxy-ebpf: error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_an_own_error_exits_with_its_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def busy(*_: object) -> None:
        raise BusyError("port 1 is taken")

    monkeypatch.setattr(tables, "generation_in_force", busy)
    assert run_main(monkeypatch, "flows") == 75
    assert capsys.readouterr().err == "kproxy-ebpf: error: port 1 is taken\n"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            PermissionError(13, "Permission denied", "/sys/fs/bpf/x"),
            77,
            "/sys/fs/bpf/x: Permission denied: run as root",
        ),
        (OSError(12, "bpf_obj_get counters: no memory"), 71, "bpf_obj_get counters: no memory"),
    ],
)
def test_an_error_of_the_system_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, code: int, words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tables, "generation_in_force", fail)
    assert run_main(monkeypatch, "flows") == code
    assert words in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    pipe = f"{sys.executable} -c 'from kproxy_ebpf.cli import main; main()' run --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
