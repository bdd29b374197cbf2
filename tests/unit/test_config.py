"""Settings: what is allowed, what an operator is told about the rest, and that a bad offer changes nothing."""

import asyncio
from collections.abc import Awaitable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from kproxy_ebpf.config import (
    POD_INTERFACES,
    LogLevel,
    Mode,
    Settings,
    SettingsFile,
    SettingsKeeper,
    parse_settings,
    read_settings_file,
)
from kproxy_ebpf.errors import ConfigError, SettingsAbsentError
from kproxy_ebpf.linux import files


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


def test_networks_of_both_families() -> None:
    settings = parse_settings({"cluster-cidr": "10.244.0.0/16, fd00:244::/48"})
    assert settings.cluster_cidr == (IPv4Network("10.244.0.0/16"), IPv6Network("fd00:244::/48"))
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
        ({"cluster-cidr": "10.244.0.0/16 10.244.0.1/24"}, ["setting cluster-cidr", "10.244.0.1/24", "fd00:244::/48"]),
        ({"cluster-cidr": "everywhere"}, ["setting cluster-cidr", "'everywhere'", "10.244.0.0/16"]),
        ({"cluster-cidr": "fe80::%eth0/64"}, ["setting cluster-cidr", "fe80::%eth0/64", "one link"]),
        ({"cluster-cidr": "::/0"}, ["setting cluster-cidr", "::/0 is more than any cluster"]),
        ({"cluster-cidr": "10.0.0.0/8 " * 65}, ["setting cluster-cidr", "65 networks", "64"]),
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


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "{}", "[]"])
def test_an_empty_file_holds_no_settings(tmp_path: Path, content: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(SettingsAbsentError, match=r"settings\.yaml holds no settings"):
        read_settings_file(file)


def test_settings_that_vanish_leave_the_last_good_ones_in_force(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("mode: tc\n")
    keeper = SettingsKeeper()
    source = SettingsFile(file, keeper)
    source.read()
    file.write_text("")
    source.read()
    assert (keeper.current.mode, keeper.has_settings) == (Mode.TC, True)
    assert isinstance(keeper.error, SettingsAbsentError)
    file.unlink()
    source.read()
    assert keeper.current.mode is Mode.TC
    assert keeper.error is not None


def test_settings_that_never_were_mean_the_defaults_and_an_error() -> None:
    def absent() -> dict[str, object]:
        raise SettingsAbsentError("there are none")

    keeper = SettingsKeeper()
    keeper.offer(absent)
    assert (keeper.current, keeper.has_settings, str(keeper.error)) == (Settings(), True, "there are none")


def test_only_a_mode_ends_mode_off() -> None:
    keeper = SettingsKeeper()
    keeper.offer(lambda: {"log-level": "debug"})
    assert keeper.error is None
    keeper.offer(lambda: {"mode": "off"})
    keeper.offer(lambda: {"log-level": "info"})
    assert keeper.current.mode is Mode.OFF
    assert "setting mode is off and can't be left out: give it a value, off, tc, socket or hybrid" in str(keeper.error)
    keeper.offer(lambda: {"mode": "tc"})
    assert (keeper.current.mode, keeper.error) == (Mode.TC, None)


@pytest.mark.parametrize("content", ["- a\n", "mode: [", "\x00", "just words", "mode: " + "[" * 3000, "x" * (1 << 21)])
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "POLL_SECONDS", 0.05)


async def mode_becomes(keeper: SettingsKeeper, mode: Mode) -> None:
    async with asyncio.timeout(10):
        while keeper.current.mode is not mode:  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.02)


async def following(file: SettingsFile, scenario: Awaitable[None]) -> None:
    task = asyncio.create_task(file.follow())
    try:
        await scenario
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.usefixtures("quick")
async def test_a_replaced_file_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("mode: tc\n")
    keeper = SettingsKeeper()
    file = SettingsFile(path, keeper)
    file.read()
    assert keeper.current.mode is Mode.TC

    async def scenario() -> None:
        (tmp_path / "new").write_text("mode: off\n")
        (tmp_path / "new").replace(path)
        await mode_becomes(keeper, Mode.OFF)

    await following(file, scenario())


@pytest.mark.usefixtures("quick")
async def test_a_folder_that_goes_and_comes_back_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    (folder / "settings.yaml").write_text("mode: tc\n")
    keeper = SettingsKeeper()
    file = SettingsFile(folder / "settings.yaml", keeper)
    file.read()

    async def scenario() -> None:
        folder.rename(tmp_path / "old")
        async with asyncio.timeout(10):
            while keeper.error is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert keeper.current.mode is Mode.TC
        folder.mkdir()
        (folder / "settings.yaml").write_text("mode: off\n")
        await mode_becomes(keeper, Mode.OFF)
        assert keeper.error is None

    await following(file, scenario())


def test_a_file_that_stays_is_offered_once(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("mode: fast\n")
    keeper, offers = SettingsKeeper(), []
    keeper.listen(lambda k: offers.append(k.error))
    file = SettingsFile(path, keeper)
    file.read()
    file.read()
    assert len(offers) == 1


def test_what_this_version_does_not_serve_is_said() -> None:
    asked = parse_settings({"mode": "tc", "network-policy": "enforce"})
    assert [sentence.split()[0] for sentence in asked.unserved()] == ["network-policy"]
    assert not list(parse_settings({"mode": "tc"}).unserved())


def test_a_sentence_about_settings_is_short_whatever_they_are() -> None:
    bomb: object = "x"
    for _ in range(9):
        bomb = [bomb] * 9
    with pytest.raises(ConfigError, match="setting mode can't be a list"):
        parse_settings({"mode": bomb})
    bad = {"balancing": "x" * 10_000, "y" * 10_000: "", "pod-interfaces": "*" * 10_000}
    with pytest.raises(ConfigError) as refused:
        parse_settings({**bad, **{f"key-{number}": "" for number in range(10_000)}})
    assert "setting balancing can't be 'xxx" in str(refused.value)
    assert len(str(refused.value)) < 3000
