"""Settings: what is allowed, what an operator is told about the rest, and that a bad offer changes nothing."""

import asyncio
from pathlib import Path

import pytest

from kproxy_ebpf.config import (
    POD_INTERFACES,
    LogLevel,
    Mode,
    Settings,
    SettingsKeeper,
    parse_settings,
    read_settings_file,
    watch_settings_file,
)
from kproxy_ebpf.errors import ConfigError


def test_nothing_given_means_the_defaults() -> None:
    settings = parse_settings({})
    assert settings == Settings()
    assert settings.mode is Mode.HYBRID
    assert settings.pod_interfaces == POD_INTERFACES


def test_keys_are_the_config_maps() -> None:
    settings = parse_settings({"mode": "off", "pod-interfaces": "veth*, cali*\nnode1-*", "log-level": "debug"})
    assert settings.mode is Mode.OFF
    assert settings.pod_interfaces == ("veth*", "cali*", "node1-*")
    assert settings.log_level is LogLevel.DEBUG
    assert parse_settings(settings.plain()) == settings


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"mode": "ebpf"}, ["setting mode", "'ebpf'", "off, tc, socket or hybrid"]),
        ({"balancing": "maglef"}, ["setting balancing", "random or maglev"]),
        ({"mod": "off"}, ["setting mod is unknown", "did you mean mode?"]),
        ({"zzz": "1"}, ["setting zzz is unknown", "log-level"]),
        ({"pod_interfaces": "veth*"}, ["setting pod_interfaces is unknown", "pod-interfaces"]),
        ({"pod-interfaces": "*"}, ["setting pod-interfaces", "'*'", "no pod's"]),
        ({"pod-interfaces": "l?"}, ["setting pod-interfaces", "'l?'"]),
        ({"pod-interfaces": " "}, ["setting pod-interfaces", "veth*"]),
        ({"pod-interfaces": {"a": "b"}}, ["setting pod-interfaces", "veth*"]),
        ({"mode": "x", "log-level": "loud"}, ["setting mode", "setting log-level", "debug"]),
    ],
)
def test_an_error_names_every_key_and_what_is_allowed(mapping: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(mapping)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pod_interfaces_match_as_patterns() -> None:
    settings = parse_settings({"pod-interfaces": "veth*"})
    assert settings.is_pod_interface("veth12ab")
    assert not settings.is_pod_interface("eth0")


def test_yaml_off_stays_off(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("mode: off\n")
    assert parse_settings(read_settings_file(file)).mode is Mode.OFF


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("# nothing yet\n")
    assert parse_settings(read_settings_file(file)) == Settings()


@pytest.mark.parametrize("content", ["- a\n", "mode: [", "\x00", "just words"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"settings\.yaml"):
        read_settings_file(file)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        read_settings_file(tmp_path / "absent.yaml")


def test_a_bad_offer_leaves_the_last_good_settings_in_force() -> None:
    keeper = SettingsKeeper()
    heard: list[tuple[Mode, bool]] = []
    keeper.listen(lambda k: heard.append((k.current.mode, k.error is None)))
    keeper.offer(lambda: {"mode": "tc"})
    keeper.offer(lambda: {"mode": "fast"})
    keeper.offer(lambda: {"mode": "off"})
    assert heard == [(Mode.TC, True), (Mode.TC, False), (Mode.OFF, True)]


async def test_a_replaced_file_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("mode: tc\n")
    keeper = SettingsKeeper()
    changed = asyncio.Event()
    keeper.listen(lambda _: changed.set())
    watching = asyncio.create_task(watch_settings_file(file, keeper))
    try:
        async with asyncio.timeout(10):
            while not changed.is_set():  # the watch needs a moment to begin: replace until it is seen
                (tmp_path / "new").write_text("mode: off\n")
                (tmp_path / "new").replace(file)
                await asyncio.sleep(0.05)
        assert keeper.current.mode is Mode.OFF
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def test_what_this_version_does_not_serve_is_said() -> None:
    asked = parse_settings({"mode": "tc", "forwarding": "redirect", "network-policy": "enforce"})
    assert [sentence.split()[0] for sentence in asked.unserved()] == ["forwarding", "network-policy"]
    assert not list(parse_settings({"mode": "tc"}).unserved())
