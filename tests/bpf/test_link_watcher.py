"""Links that come, go, move away and change while they are followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from socket import if_nametoindex

import pytest
from links import ip, pins, tc
from pyroute2.iproute.linux import IPRoute

from kproxy_ebpf.datapath.attach.link_watcher import LinkWatcher
from kproxy_ebpf.datapath.attach.tc import Attacher, Method
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux.bpf import Link


@asynccontextmanager
async def watching(links: LinkWatcher) -> AsyncIterator[None]:
    task = asyncio.create_task(links.run())
    try:
        await asyncio.wait_for(links.ready.wait(), 10)
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what is waited for is the kernel's
            await asyncio.sleep(0.005)


async def test_links_are_followed(attacher: Attacher, netns: str) -> None:
    ip("link add veth-old type veth peer name peer-old", "link add other0 type veth peer name other1")
    seconds: list[float] = []
    links = LinkWatcher(attacher, lambda name: name.startswith("veth"), on_attached=seconds.append)
    async with watching(links):
        assert set(links.attached.values()) == {"veth-old"}
        ip(f"link add veth-new type veth peer name eth0 netns {netns}-pod")
        new = if_nametoindex("veth-new")
        await until(lambda: new in links.attached)
        assert new in await asyncio.to_thread(attacher.attached)
        assert len(seconds) == 2
        assert all(0 <= value < 10 for value in seconds)
        ip("link set other0 name veth-renamed")
        await until(lambda: "veth-renamed" in links.attached.values())
        ip("link set veth-renamed name mine")
        await until(lambda: "veth-renamed" not in links.attached.values())
        ip("link del veth-new")
        await until(lambda: new not in links.attached)
    carrying = await asyncio.to_thread(attacher.attached)
    assert carrying.keys() == {if_nametoindex("veth-old")}, "what is attached outlives the watch"
    await asyncio.to_thread(attacher.detach, if_nametoindex("veth-old"))


async def test_nothing_is_left_of_links_that_go_while_programs_are_attached(
    attacher: Attacher, netns: str, generation: Generation
) -> None:
    """Each link goes as soon as it has its first pin, while others are still to be made."""
    links = LinkWatcher(attacher, lambda name: name.startswith("veth"))
    async with watching(links):
        for number in range(20):
            brief = await asyncio.to_thread(_brief_link, f"veth{number}", netns, generation)
            await until(lambda brief=brief: pins(generation, brief) == [])
    assert links.attached == links.failed == {}


def _brief_link(name: str, netns: str, generation: Generation) -> int:
    """Make a link and remove it when its first pin is seen; returns its former ifindex."""
    ip(f"link add {name} type veth peer name eth0 netns {netns}-pod")
    ifindex = if_nametoindex(name)
    with IPRoute() as route:
        while not pins(generation, ifindex):
            pass
        route.link("del", index=ifindex)
    return ifindex


async def test_a_link_that_moves_away_loses_its_programs(
    attacher: Attacher, netns: str, generation: Generation
) -> None:
    ip("link add veth0 type veth peer name veth-moves")
    links = LinkWatcher(attacher, lambda name: name.startswith("veth"))
    async with watching(links):
        moving = if_nametoindex("veth-moves")
        await until(lambda: moving in links.attached)
        held = [Link.open(pin) for pin in (generation.root / "links").glob(f"{moving}-*_pod_*")]
        assert [link.info.ifindex for link in held] == [moving] * len(held)
        ip(f"link set veth-moves netns {netns}-pod")
        await until(lambda: moving not in links.attached)
        assert [link.info.ifindex for link in held] == [0] * len(held)
        assert tc("-n", f"{netns}-pod", "filter", "show", "dev", "veth-moves", "ingress") == ""
        assert moving not in await asyncio.to_thread(attacher.attached)


async def test_uplinks_are_left_alone(attacher: Attacher, netns: str) -> None:
    ip("link add veth0 type veth peer name veth1", "link set veth0 up", "link set veth1 up")
    ip("address add 192.0.2.1/24 dev veth0", "route add default via 192.0.2.2")
    links = LinkWatcher(attacher, lambda name: name.startswith("veth"))
    async with watching(links):
        assert set(links.attached.values()) == {"veth1"}
        ip("address add 198.51.100.1/24 dev veth1", "route add default via 198.51.100.2 metric 7")
        await until(lambda: not links.attached)
        ip("route del default via 192.0.2.2")
        await until(lambda: set(links.attached.values()) == {"veth0"})
        ip("route replace default metric 7 nexthop via 198.51.100.2 nexthop via 192.0.2.2")
        await until(lambda: not links.attached)
        ip("route del default metric 7")
        await until(lambda: set(links.attached.values()) == {"veth0", "veth1"})


async def test_patterns_may_change(attacher: Attacher, netns: str) -> None:
    ip("link add veth0 type veth peer name cali0")
    prefix = ["veth"]
    links = LinkWatcher(attacher, lambda name: name.startswith(prefix[0]))
    async with watching(links):
        assert set(links.attached.values()) == {"veth0"}
        prefix[0] = "cali"
        links.reconsider()
        await until(lambda: set(links.attached.values()) == {"cali0"})
        assert (await asyncio.to_thread(attacher.attached)).keys() == {if_nametoindex("cali0")}


async def test_a_failure_is_told_and_tried_again(netns: str, generation: Generation) -> None:
    """An ingress qdisc stands where clsact would."""
    ip("link add veth0 type veth peer name peer0")
    tc("qdisc", "add", "dev", "veth0", "ingress")
    attacher, failures = Attacher(generation, Method.CLSACT), []
    links = LinkWatcher(attacher, lambda name: name.startswith("veth"), on_failed=lambda: failures.append(1))
    async with watching(links):
        veth = if_nametoindex("veth0")
        assert list(links.failed) == [veth]
        assert failures
        assert links.attached == {}
        tc("qdisc", "del", "dev", "veth0", "ingress")
        ip("link set veth0 up")
        await until(lambda: veth in links.attached)
        assert links.failed == {}
    await asyncio.to_thread(attacher.detach, veth)
    attacher.close()


async def test_lost_messages_are_made_up_for(attacher: Attacher, netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kproxy_ebpf.linux.rtnetlink._HEARING_BYTES", 0)  # the kernel's least
    links = LinkWatcher(attacher, lambda name: name == "veth-last")
    async with watching(links):
        ip(*(f"link add dump{i} type bridge" for i in range(60)), "link add veth-last type veth peer name peer")
        await until(lambda: bool(links.attached))


async def test_a_link_is_equipped_before_it_is_heard_of(attacher: Attacher, netns: str) -> None:
    links = LinkWatcher(attacher, lambda name: name.startswith("veth"))
    ip("link add veth0 type veth peer name other0")
    veth, other = if_nametoindex("veth0"), if_nametoindex("other0")
    assert not await links.is_as_wanted(veth, "veth0")
    assert await links.equip(veth, "veth0")
    assert await links.is_as_wanted(veth, "veth0")
    assert await asyncio.to_thread(attacher.is_attached, veth)
    assert not await links.equip(other, "other0")
    assert await links.is_as_wanted(other, "other0"), "it is to have none"
    assert not await asyncio.to_thread(attacher.is_attached, other)
    async with watching(links):
        assert links.attached == {veth: "veth0"}
        await asyncio.to_thread(attacher.detach, veth)
        assert not await links.is_as_wanted(veth, "veth0")
        assert await links.equip(veth, "veth0"), "whatever is thought to be attached"
        assert await links.is_as_wanted(veth, "veth0")


async def test_links_are_equipped_while_they_are_surveyed(attacher: Attacher, netns: str) -> None:
    """Both attach the same programs to the same links; each program is there once."""
    ip(*(f"link add veth{number} type veth peer name other{number}" for number in range(20)))
    links = LinkWatcher(attacher, lambda name: name.startswith("veth"))
    async with watching(links):
        links.reconsider()
        names = {if_nametoindex(f"veth{number}"): f"veth{number}" for number in range(20)}
        assert all(await asyncio.gather(*(links.equip(*link) for link in names.items())))
        await links.ready.wait()
        assert (links.attached, links.failed) == (names, {})
    assert all([await asyncio.to_thread(attacher.is_attached, ifindex) for ifindex in names])


async def test_a_link_that_is_gone_can_not_be_equipped(attacher: Attacher, netns: str, generation: Generation) -> None:
    ip("link add veth0 type veth peer name other0")
    veth = if_nametoindex("veth0")
    links = LinkWatcher(attacher, lambda name: name.startswith("veth"))
    async with watching(links):
        ip("link del veth0")
        await until(lambda: veth not in links.attached)
        with pytest.raises(NodeError, match="veth0 is gone"):
            await links.equip(veth, "veth0")
        assert links.attached == links.failed == {}
    assert pins(generation, veth) == []
