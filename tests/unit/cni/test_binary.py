"""Putting the plugin's program into the node's folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from kproxy_ebpf import cli
from kproxy_ebpf.cni import binary
from kproxy_ebpf.cni.binary import install, is_installed
from kproxy_ebpf.cni.conflist import PLUGIN
from kproxy_ebpf.errors import NodeError


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that can be run, in the place of the plugin."""
    path = tmp_path / "shipped"
    path.write_bytes(Path("/bin/sleep").read_bytes())
    monkeypatch.setattr(binary, "shipped_plugin", lambda: path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "bin").mkdir()
    return folder


def test_it_is_put_there_once(shipped: Path, folder: Path) -> None:
    assert not is_installed(folder)
    assert install(folder)
    assert is_installed(folder)
    assert not install(folder)
    assert [(path.name, path.stat().st_mode & 0o777) for path in folder.iterdir()] == [(PLUGIN, 0o755)]


def test_a_program_that_runs_is_replaced(shipped: Path, folder: Path) -> None:
    install(folder)
    with subprocess.Popen([folder / PLUGIN, "60"]) as running:
        with pytest.raises(OSError, match="busy"):
            (folder / PLUGIN).write_bytes(b"")
        shipped.write_bytes(b"another one")
        assert install(folder)
        assert running.poll() is None
        running.kill()
    assert (folder / PLUGIN).read_bytes() == b"another one"


def test_what_can_not_be_run_is_not_installed(folder: Path) -> None:
    (folder / PLUGIN).touch(0o644)
    assert not is_installed(folder)


def test_the_command(shipped: Path, folder: Path) -> None:
    run = CliRunner()
    arguments = ["install-cni", "--cni-bin-dir", str(folder)]
    assert "put into" in run.invoke(cli.commands, arguments).output
    assert "already" in run.invoke(cli.commands, arguments).output
    result = run.invoke(cli.commands, ["install-cni", "--cni-bin-dir", str(folder / "absent")])
    assert "--cni-bin-dir" in str(result.exception)


def test_a_program_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary, "PLUGIN", "no-such-plugin")
    with pytest.raises(NodeError, match="make setup"):
        binary.shipped_plugin()
