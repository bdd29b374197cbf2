"""A daemon's start: with compiled programs at hand, and the moments in which it compiles them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from kproxy_ebpf.lab import Lab, Node
from kproxy_ebpf.lab.daemon import HEALTH_PORT, START_SECONDS, Daemon
from kproxy_ebpf.lab.manifests import DEFAULT_PORTS
from kproxy_ebpf.lab.traffic import EchoServer, ask
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


def readiness(daemon: Daemon) -> tuple[int, dict[str, str]]:
    """The status of /readyz and what is missing; 0 as long as nobody answers."""
    with suppress(OSError):
        status, body = daemon.get("/readyz", HEALTH_PORT)
        return status, json.loads(body)["missing"]
    return 0, {}


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


def test_ready_is_said_when_pods_are_served_and_not_before(daemon, node):
    client, web = node.pod("client"), node.pod("web")
    vips = ["10.96.0.10", "fd00:96::10"]
    daemon.manifests.service("web", vips)
    daemon.manifests.endpoints("web", [web.ip4, web.ip6])
    with closing(EchoServer(web, "web")) as server:
        for address in (web.ip4, web.ip6):
            server.listen(address, DEFAULT_PORTS["http"][2])
        seen: list[tuple[int, dict[str, str]]] = []

        def is_ready() -> bool:
            seen.append(readiness(daemon))
            return seen[-1][0] == 200

        daemon.launch()
        until(is_ready, "the node to be ready", seconds=START_SECONDS, pause=0)
        assert [ask(client, vip, 80).server for vip in vips] == ["web", "web"]  # the first packets of all
        assert seen[-1][1] == {}
        earlier = [(status, bool(missing)) for status, missing in seen[:-1] if status]
        assert set(earlier) == {(503, True)}, "what is missing is named until the end"
