"""Settings on their way into the daemon: from the file, from an earlier start, refused ones."""

import asyncio
from pathlib import Path

import pytest

from kproxy_ebpf.config import Mode, SettingsFile, SettingsKeeper
from kproxy_ebpf.daemon import settings
from kproxy_ebpf.daemon.settings import Reporter, last_good, wait_for_first
from kproxy_ebpf.errors import ConfigError
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tmp_path / "settings.json"


@pytest.fixture
def levels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(settings, "set_level", told.append)
    return told


async def test_a_good_file_settles_and_is_kept_for_the_next_start(saved: Path, levels: list[str]) -> None:
    config = saved.with_name("config.yaml")
    config.write_text("mode: off\nlog-level: debug\n")
    keeper = SettingsKeeper(last_good(saved))
    keeper.listen(Reporter(saved, Metrics(), Health(60), lambda _: None))
    await wait_for_first(keeper, SettingsFile(config, keeper), None)
    assert keeper.current.mode is Mode.OFF
    assert levels == ["debug"]
    earlier = last_good(saved)
    assert earlier is not None
    assert earlier.mode is Mode.OFF


async def test_a_bad_file_at_the_first_start_is_refused(saved: Path) -> None:
    config = saved.with_name("config.yaml")
    config.write_text("mode: fast\n")
    keeper = SettingsKeeper(last_good(saved))
    with pytest.raises(ConfigError, match="mode"):
        await wait_for_first(keeper, SettingsFile(config, keeper), None)


async def test_a_bad_file_at_a_later_start_leaves_the_last_good_ones(saved: Path, levels: list[str]) -> None:
    config = saved.with_name("config.yaml")
    config.write_text("mode: off\n")
    first = SettingsKeeper(last_good(saved))
    first.listen(Reporter(saved, Metrics(), Health(60), lambda _: None))
    await wait_for_first(first, SettingsFile(config, first), None)

    config.write_text("mode: fast\n")
    metrics, health, warned = Metrics(), Health(60), []
    second = SettingsKeeper(last_good(saved))
    second.listen(Reporter(saved, metrics, health, warned.append))
    await wait_for_first(second, SettingsFile(config, second), None)
    assert second.current.mode is Mode.OFF
    assert "off, tc, socket or hybrid" in health.problems["settings"]
    assert metrics.registry.get_sample_value("kproxy_ebpf_settings_errors_total") == 1
    assert metrics.registry.get_sample_value("kproxy_ebpf_settings_valid") == 0
    assert len(warned) == 1

    second.offer(lambda: {"mode": "tc"})
    assert "settings" not in health.problems
    assert metrics.registry.get_sample_value("kproxy_ebpf_settings_valid") == 1


async def test_a_config_map_is_waited_for() -> None:
    keeper, answered = SettingsKeeper(), asyncio.Event()
    waiting = asyncio.create_task(wait_for_first(keeper, None, answered))
    await asyncio.sleep(0)
    assert not waiting.done()
    keeper.offer(lambda: {"mode": "tc"})
    answered.set()
    await waiting
    assert keeper.current.mode is Mode.TC


async def test_without_any_source_the_defaults_hold() -> None:
    keeper = SettingsKeeper()
    await wait_for_first(keeper, None, None)
    assert keeper.has_settings
    assert keeper.current.mode is Mode.HYBRID


def test_what_another_version_saved_is_ignored(saved: Path) -> None:
    saved.write_text('{"mode": "quantum"}')
    assert last_good(saved) is None


def test_what_is_not_served_is_a_problem_for_all_to_see(saved: Path, levels: list[str]) -> None:
    health = Health(60)
    keeper = SettingsKeeper()
    keeper.listen(Reporter(saved, Metrics(), health, lambda _: None))
    keeper.offer(lambda: {"mode": "tc", "network-policy": "enforce"})
    assert "network-policy enforce" in health.problems["settings-unserved"]
    keeper.offer(lambda: {"mode": "tc"})
    assert "settings-unserved" not in health.problems
