"""What the daemon says of itself before it has read the cluster."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from kproxy_ebpf.daemon.core import Daemon, _handle_signals
from kproxy_ebpf.daemon.options import Options
from kproxy_ebpf.errors import SettingsAbsentError
from kproxy_ebpf.observe.state import state_dir, write_json


@pytest.fixture
def bpffs(tmp_path: Path) -> Path:
    return tmp_path / "bpf"


def daemon_of(bpffs: Path) -> Daemon:
    return Daemon(Options(node_name="n1", bpffs=bpffs))


def test_the_status_is_this_daemons_from_the_start(bpffs: Path) -> None:
    earlier = {"pid": 1, "version": "0", "synced": True, "refused": ["x"], "links": ["veth1"], "services": {"4": {}}}
    write_json(state_dir(bpffs) / "status.json", earlier)
    told = daemon_of(bpffs)._describe()
    assert (told["pid"], told["node"], told["synced"], told["refused"]) == (os.getpid(), "n1", False, [])
    assert (told["links"], told["services"]) == (["veth1"], {"4": {}})  # of the datapath, which still stands
    assert told["settings"] == {}


def test_what_a_node_lacks_is_told_step_by_step(bpffs: Path) -> None:
    daemon = daemon_of(bpffs)
    assert daemon._missing() == {"programs": "the programs are not yet loaded"}
    daemon.health.problem("programs", "they are being compiled")
    assert daemon._missing() == {"programs": "they are being compiled"}
    of_modes = {"datapath": "not yet"}
    reconciler, modes = SimpleNamespace(first_sync_done=False), SimpleNamespace(missing=lambda: dict(of_modes))
    daemon._reconciler, daemon._modes = reconciler, modes  # type: ignore[assignment]
    assert set(daemon._missing()) == {"datapath", "first-sync"}
    reconciler.first_sync_done = True
    assert set(daemon._missing()) == {"datapath"}
    of_modes.clear()
    assert set(daemon._missing()) == {"links"}, "until the daemon has seen them all"
    daemon.health.synced = True
    assert daemon._missing() == {}


async def test_a_source_that_can_not_be_seen_is_told_from_the_start(bpffs: Path) -> None:
    daemon = daemon_of(bpffs)
    cluster: Any = SimpleNamespace(
        source=SimpleNamespace(last_error="connection refused", connected=False),
        config_map=SimpleNamespace(last_error="forbidden"),
    )
    task = asyncio.create_task(daemon._report_sources(cluster))
    await asyncio.sleep(0)
    task.cancel()
    assert daemon.health.problems == {
        "source": "what changes in the cluster can't be seen: connection refused",
        "settings-source": "what changes in the settings can't be seen: forbidden",
    }


def test_a_config_map_that_is_no_more_changes_nothing(bpffs: Path) -> None:
    daemon, answered = daemon_of(bpffs), asyncio.Event()
    daemon._config_map(answered, {"mode": "off"})
    daemon._config_map(answered, SettingsAbsentError("there is none"))
    assert daemon.keeper.current.mode.value == "off"
    assert str(daemon.keeper.error) == "there is none"
    assert answered.is_set()


async def test_sighup_ends_nothing() -> None:
    loop = asyncio.get_running_loop()
    _handle_signals()
    try:
        with structlog.testing.capture_logs() as logs:
            os.kill(os.getpid(), signal.SIGHUP)
            async with asyncio.timeout(5):
                while not logs:  # noqa: ASYNC110, a log line is no event
                    await asyncio.sleep(0.01)
        assert "SIGHUP is ignored" in logs[0]["event"]
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
