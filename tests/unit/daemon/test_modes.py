"""Which links the programs are for, as the mode changes and flows end."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest

from kproxy_ebpf.config import SettingsKeeper, parse_settings
from kproxy_ebpf.contract.layouts import Switches
from kproxy_ebpf.daemon import modes
from kproxy_ebpf.daemon.modes import ModeSwitch, switches_of
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics


class FakeSockets:
    problem: str | None = None
    is_attached = False


class FakeFlows:
    live = True
    sweeps = 0  # how often the daemon looked whether any lives

    def __init__(self, datapath: "FakeDatapath") -> None:
        self._datapath = datapath
        self.imports: list[Switches] = []
        self.releases: list[Switches] = []
        self.forget = Mock()

    def import_udp(self) -> int:
        self.imports.append(self._datapath.switches)
        return 0

    def forget_unserved_udp(self) -> int:
        self.releases.append(self._datapath.switches)
        return 0

    def has_live(self) -> bool:
        self.sweeps += 1
        return self.live


class FakeDatapath:
    attacher: Any = None
    uplink_attacher: Any = None
    generation: Any = None
    pins = True
    switches = Switches(0)
    has_taken_over = True

    def __init__(self) -> None:
        self.flows = FakeFlows(self)
        self.sockets = FakeSockets()

    def offer_sockets(self) -> None:
        self.sockets.is_attached = self.sockets.problem is None

    def switch(self, switches: Switches) -> None:
        self.switches = switches

    def require_pins(self) -> None:
        if not self.pins:
            raise NodeError("pins are missing")

    def retire_aged(self) -> None: ...


@pytest.fixture
def datapath() -> FakeDatapath:
    return FakeDatapath()


def switch_with(mode: str, datapath: FakeDatapath, health: Health | None = None) -> tuple[ModeSwitch, SettingsKeeper]:
    keeper = SettingsKeeper(parse_settings({"mode": mode, "pod-interfaces": "veth*"}))
    switch = ModeSwitch(datapath, keeper, Metrics(), health or Health(60), lambda: None)  # type: ignore[arg-type]
    switch.links.reconsider = switch.links.ready.set  # type: ignore[method-assign]  # there are no links
    switch.links.reconsider()
    return switch, keeper


async def test_a_kernel_that_can_not_redirect_is_told_of(
    datapath: FakeDatapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "redirects", lambda: False)
    health = Health(60)
    made, keeper = switch_with("tc", datapath, health)
    keeper.offer(lambda: {"mode": "tc", "forwarding": "redirect"})
    following = asyncio.create_task(made.follow())
    async with asyncio.timeout(5):
        await made.switched.wait()
    following.cancel()
    assert datapath.switches == Switches.TC
    assert "redirect" in health.problems


async def admitted_becomes(wanted: bool, switch: ModeSwitch) -> None:
    async with asyncio.timeout(5):
        while switch.admits("vethx") is not wanted:  # noqa: ASYNC110 - drain has no event to wait for
            await asyncio.sleep(0.01)


async def while_draining(switch: ModeSwitch, scenario: Callable[[], Any]) -> None:
    draining = asyncio.create_task(switch.follow())
    try:
        await scenario()
    finally:
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)


def test_pods_links_are_admitted_by_name(datapath: FakeDatapath) -> None:
    on, _ = switch_with("tc", datapath)
    assert on.admits("vethx")
    assert not on.admits("eth0")


def test_mode_off_at_the_start_attaches_nothing_where_no_flow_lives(datapath: FakeDatapath) -> None:
    datapath.flows.live = False
    off, _ = switch_with("off", datapath)
    assert not off.admits("vethx")


@pytest.mark.parametrize(
    ("mode", "switches"),
    [
        ("off", Switches(0)),
        ("tc", Switches.TC),
        ("socket", Switches.SOCKET),
        ("hybrid", Switches.TC | Switches.SOCKET),
    ],
)
async def test_each_mode_switches_its_programs(datapath: FakeDatapath, mode: str, switches: Switches) -> None:
    subject, _ = switch_with(mode, datapath)
    await while_draining(subject, subject.switched.wait)
    assert datapath.switches == switches
    assert datapath.sockets.is_attached == bool(switches & Switches.SOCKET)


@pytest.mark.parametrize("mode", ["socket", "hybrid"])
async def test_a_node_without_sockets_is_served_at_tc_and_says_why(datapath: FakeDatapath, mode: str) -> None:
    datapath.sockets.problem = "no socket fast path"
    health = Health(60)
    subject, _ = switch_with(mode, datapath, health)
    await while_draining(subject, subject.switched.wait)
    assert datapath.switches == Switches.TC
    assert health.problems["sockets"] == "no socket fast path"
    assert subject.is_on


async def test_a_mode_is_in_force_after_the_take_over_and_the_switch(datapath: FakeDatapath) -> None:
    datapath.has_taken_over = False
    subject, keeper = switch_with("tc", datapath)
    assert set(subject.missing()) == {"datapath", "mode"}
    datapath.has_taken_over = True

    async def scenario() -> None:
        async with asyncio.timeout(5):
            await subject.switched.wait()
            assert subject.missing() == {}
            keeper.offer(lambda: {"mode": "off"})
            assert subject.missing() == {"mode": "mode off is not yet in force"}
            await subject.switched.wait()
        assert subject.missing() == {}

    await while_draining(subject, scenario)


@pytest.mark.parametrize(("mode", "counts"), [("tc", True), ("hybrid", True), ("socket", False), ("off", False)])
async def test_a_link_without_programs_is_missing_where_the_mode_needs_them(
    datapath: FakeDatapath, mode: str, counts: bool
) -> None:
    subject, _ = switch_with(mode, datapath)
    await while_draining(subject, subject.switched.wait)
    subject.links.failed[7] = "no room for a program"
    assert ("no room for a program" in subject.missing().get("links", "")) is counts
    subject.links.failed.clear()
    assert subject.missing() == {}


def test_mode_socket_takes_programs_off_links_without_flows(datapath: FakeDatapath) -> None:
    datapath.flows.live = False
    subject, _ = switch_with("socket", datapath)
    assert not subject.admits("vethx")


async def test_mode_off_keeps_programs_until_the_last_flow_ends(
    datapath: FakeDatapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "DRAIN_SECONDS", 0.01)
    subject, keeper = switch_with("hybrid", datapath)

    async def scenario() -> None:
        keeper.offer(lambda: {"mode": "off", "pod-interfaces": "veth*"})
        async with asyncio.timeout(5):
            while datapath.flows.sweeps < 3:  # noqa: ASYNC110 - a fake has no event
                await asyncio.sleep(0.01)
        assert subject.admits("vethx")
        assert not datapath.switches
        datapath.flows.live = False
        await admitted_becomes(False, subject)
        datapath.flows.forget.assert_not_called()
        datapath.flows.forget.side_effect = lambda: admitted.append(subject.admits("vethx"))
        admitted: list[bool] = []
        keeper.offer(lambda: {"mode": "tc", "pod-interfaces": "veth*"})
        await admitted_becomes(True, subject)
        assert admitted == [False], "what is left of flows is forgotten first"

    await while_draining(subject, scenario)


async def test_other_patterns_hold_at_once(datapath: FakeDatapath) -> None:
    subject, keeper = switch_with("tc", datapath)
    keeper.offer(lambda: {"mode": "tc", "pod-interfaces": "cali*"})
    assert subject.admits("calix")
    assert not subject.admits("vethx")


async def test_missing_pins_end_the_daemon(datapath: FakeDatapath) -> None:
    subject, _ = switch_with("tc", datapath)
    datapath.pins = False
    with pytest.raises(NodeError, match="missing"):
        await subject.guard(0.01)


async def test_a_mode_that_comes_back_while_flows_are_counted_keeps_the_programs() -> None:
    counting, counted = threading.Event(), threading.Event()

    def counts_slowly() -> bool:
        counting.set()
        counted.wait(5)
        return False

    datapath = FakeDatapath()
    datapath.flows.has_live = counts_slowly  # type: ignore[method-assign]
    subject, keeper = switch_with("hybrid", datapath)
    keeper.offer(lambda: {"mode": "off", "pod-interfaces": "veth*"})

    async def scenario() -> None:
        await asyncio.to_thread(counting.wait, 5)
        keeper.offer(lambda: {"mode": "hybrid", "pod-interfaces": "veth*"})
        counted.set()
        await asyncio.sleep(0.05)  # drain goes on with what it counted
        assert subject.admits("vethx")

    await while_draining(subject, scenario)


async def test_udp_of_the_host_is_taken_over_before_any_is_balanced(datapath: FakeDatapath) -> None:
    subject, keeper = switch_with("off", datapath)

    async def scenario() -> None:
        await subject.switched.wait()
        assert not datapath.flows.imports
        keeper.offer(lambda: {"mode": "tc"})
        async with asyncio.timeout(5):
            while datapath.switches != Switches.TC:  # noqa: ASYNC110 - a fake has no event
                await asyncio.sleep(0.01)
        assert datapath.flows.imports == [Switches.TC | Switches.UDP_STAYS]
        async with asyncio.timeout(5):
            while not datapath.flows.releases:  # noqa: ASYNC110 - a fake has no event
                await asyncio.sleep(0.01)
        keeper.offer(lambda: {"mode": "hybrid"})
        async with asyncio.timeout(5):
            while len(datapath.flows.imports) < 2:  # noqa: ASYNC110 - a fake has no event
                await asyncio.sleep(0.01)
        assert datapath.flows.releases == [Switches.TC], "afterwards, and only where datagrams could stay"

    await while_draining(subject, scenario)


@pytest.mark.parametrize(("mode", "redirects"), [("off", False), ("tc", True), ("socket", True), ("hybrid", True)])
def test_packets_are_redirected_in_every_mode_that_is_on(mode: str, redirects: bool) -> None:
    settings = parse_settings({"mode": mode, "forwarding": "redirect"})
    assert (Switches.REDIRECT in switches_of(settings, has_sockets=True)) is redirects


async def test_connections_are_looked_up_once_packets_are_redirected(
    datapath: FakeDatapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings alone are too early: connections that begin before the switch is turned on are not recorded."""
    monkeypatch.setattr(modes, "redirects", lambda: True)
    subject, keeper = switch_with("off", datapath)
    looks: list[bool] = []
    monkeypatch.setattr(subject.forwarding, "wake", lambda: looks.append(subject.forwarding._is_on()))

    async def scenario() -> None:
        await subject.switched.wait()
        looks.clear()
        keeper.offer(lambda: {"mode": "tc", "forwarding": "redirect"})
        assert looks == [False]
        async with asyncio.timeout(5):
            while len(looks) < 2:  # noqa: ASYNC110 - a fake has no event
                await asyncio.sleep(0.01)
        assert looks == [False, True]

    await while_draining(subject, scenario)
