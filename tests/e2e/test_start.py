"""A daemon's start: with compiled programs at hand, and the moments in which it compiles them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kproxy_ebpf.lab import Lab, Node
from kproxy_ebpf.lab.daemon import Daemon
from kproxy_ebpf.lab.wait import until

NO_BCC = "raise ModuleNotFoundError(\"No module named 'bcc'\", name='bcc')"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab() as lab:
        yield lab.node("node1")


@pytest.fixture
def daemon(node: Node, tmp_path: Path) -> Iterator[Daemon]:
    """Which keeps compiled programs where there are none yet."""
    daemon = Daemon(node, flags=["--cache-dir", str(tmp_path / "kept")])
    yield daemon
    if daemon.process is not None:
        daemon.stop()
    daemon.command("cleanup")


def problems(daemon: Daemon) -> dict[str, str]:
    with suppress(OSError):
        return daemon.healthz()[1]["problems"]
    return {}


def children_of(pid: int) -> list[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


@pytest.mark.alone
def test_while_it_compiles_it_says_so_and_sigterm_ends_it_at_once(daemon, tmp_path):
    daemon.launch()
    pid = daemon.process.pid
    sentence = until(lambda: problems(daemon).get("programs"), "the daemon to compile")
    assert "being compiled" in sentence
    compilers = until(lambda: len(children := children_of(pid)) == 2 and children, "both families to be compiled")
    status = daemon.command("status").stdout
    assert f"process {pid}" in status
    assert sentence in status
    assert daemon.json("status")["daemon"]["running"]
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 2
    assert not any(Path(f"/proc/{compiler}").exists() for compiler in compilers)
    assert list(daemon.bpffs.glob("kproxy-ebpf/new-*")) == []
    assert not (tmp_path / "kept").exists()


def test_a_start_with_kept_programs_needs_no_compiler(daemon, tmp_path):
    daemon.start()
    assert daemon.stop() == 0
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".programs"]
    assert "compiled, in" in daemon.command("check", "--cache-dir", str(tmp_path / "kept")).stdout
    daemon.command("cleanup")
    (tmp_path / "without").mkdir()
    (tmp_path / "without/bcc.py").write_text(NO_BCC)
    daemon.environment = {"PYTHONPATH": str(tmp_path / "without"), "BCC_KERNEL_SOURCE": os.devnull}
    daemon.start()
    assert daemon.healthz()[1]["synced"]
    assert "programs" not in problems(daemon)
