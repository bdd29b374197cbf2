"""Attachment to real links, in a network namespace of its own, by both methods."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from socket import if_nametoindex

import pytest
from pyroute2.iproute.linux import IPRoute

from kproxy_ebpf.datapath.attach.link_watcher import LinkWatcher
from kproxy_ebpf.datapath.attach.tc import AT_UPLINKS, Attacher, Method
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.lab.netns import RUN_NETNS
from kproxy_ebpf.linux.bpf import Link
from kproxy_ebpf.linux.netns import entered

PROGRAMS = ("from_pod_v4", "from_pod_v6", "to_pod_v4", "to_pod_v6")
METHODS = [Method.TCX, Method.CLSACT]


def ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, capture_output=True)


def tc(*arguments: str) -> str:
    return subprocess.run(["tc", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def netns() -> Iterator[str]:
    """A namespace of the test's own, in which the test runs. A second one, <name>-pod, for pods' ends of links."""
    name = f"attach-{os.getpid()}"
    ip(f"netns add {name}", f"netns add {name}-pod")
    try:
        with entered(RUN_NETNS / name):
            yield name
    finally:
        ip(f"netns del {name}", f"netns del {name}-pod")


@pytest.fixture
def veth(netns: str) -> int:
    ip("link add veth0 type veth peer name peer0")
    return if_nametoindex("veth0")


@pytest.fixture(params=METHODS)
def attacher(request: pytest.FixtureRequest, netns: str, generation: Generation) -> Iterator[Attacher]:
    attacher = Attacher(generation, request.param)
    yield attacher
    for ifindex in attacher.attached():
        attacher.detach(ifindex)
    assert list((generation.root / "links").iterdir()) == []
    attacher.close()


def filters(device: str = "veth0") -> list[str]:
    return [
        word
        for hook in ("ingress", "egress")
        for word in tc("filter", "show", "dev", device, hook).split()
        if word.startswith("kproxy-ebpf/")
    ]


def pins(generation: Generation, ifindex: int) -> list[str]:
    names = (pin.name for pin in (generation.root / "links").iterdir())
    return sorted(name.removeprefix(f"{ifindex}-") for name in names if name.startswith(f"{ifindex}-"))


def test_attach_and_detach(attacher: Attacher, generation: Generation, veth: int) -> None:
    method = attacher.attach(veth)
    assert attacher.attached() == {veth: method}
    if method is Method.TCX:
        assert pins(generation, veth) == list(PROGRAMS)
        assert filters() == []
        with Link.open(generation.root / "links" / f"{veth}-to_pod_v6") as link, generation.program("to_pod", 6) as p:
            assert (link.info.ifindex, link.info.attach_type, link.info.program_id) == (veth, 47, p.id)
    else:
        assert sorted(filters()) == [f"kproxy-ebpf/{name}" for name in PROGRAMS]
    attacher.attach(veth)
    assert attacher.attached() == {veth: method}, "attaching twice is attaching once"
    assert len(filters()) == (4 if method is Method.CLSACT else 0)
    attacher.detach(veth)
    assert attacher.attached() == {}
    assert filters() == []
    assert "clsact" not in tc("qdisc", "show", "dev", "veth0")
    attacher.detach(veth)


def test_auto_prefers_tcx(generation: Generation, veth: int) -> None:
    with Attacher(generation) as attacher:
        assert attacher.attach(veth) is Method.TCX
        attacher.detach(veth)


def test_changing_the_method_leaves_one(generation: Generation, veth: int) -> None:
    for method in (Method.TCX, Method.CLSACT, Method.TCX):
        with Attacher(generation, method) as attacher:
            attacher.attach(veth)
            assert attacher.attached() == {veth: method}
            assert bool(filters()) == (method is Method.CLSACT)
    with Attacher(generation) as attacher:
        attacher.detach(veth)
        assert attacher.attached() == {}


def test_other_peoples_filters_stay(attacher: Attacher, veth: int) -> None:
    tc("qdisc", "add", "dev", "veth0", "clsact")
    tc("filter", "add", "dev", "veth0", "ingress", "prio", "50", "protocol", "ip", "bpf", "da", *_foreign(attacher))
    attacher.attach(veth)
    attacher.detach(veth)
    assert filters() == []
    assert "foreign" in tc("filter", "show", "dev", "veth0", "ingress")
    assert "clsact" in tc("qdisc", "show", "dev", "veth0"), "not ours"


def test_our_qdisc_stays_for_other_peoples_filters(generation: Generation, veth: int) -> None:
    with Attacher(generation, Method.CLSACT) as attacher:
        attacher.attach(veth)
        tc("filter", "add", "dev", "veth0", "egress", "prio", "7", "protocol", "all", "bpf", "da", *_foreign(attacher))
        attacher.detach(veth)
    assert "foreign" in tc("filter", "show", "dev", "veth0", "egress")
    assert filters() == []
    assert pins(generation, veth) == []


def test_another_process_adopts_what_is_attached(attacher: Attacher, generation: Generation, veth: int) -> None:
    method = attacher.attach(veth)
    with Attacher(generation, method) as again:
        assert again.attached() == {veth: method}
        again.attach(veth)
        assert pins(generation, veth) == (list(PROGRAMS) if method is Method.TCX else ["clsact"])
        again.detach(veth)
    assert "clsact" not in tc("qdisc", "show", "dev", "veth0"), "that we made the qdisc is remembered"


def test_swap(attacher: Attacher, generation: Generation, veth: int, tmp_path: Path) -> None:
    ip("link add veth1 type veth peer name peer1")
    second = if_nametoindex("veth1")
    for ifindex in (veth, second):
        attacher.attach(ifindex)
    with generation.program("to_pod", 4) as one, generation.program("reject", 4) as other:
        before = {one.id}
        after = {other.id}
        assert _program_ids("to_pod_v4", "veth0", generation) == before
        attacher.swap(Swapped(generation.path))
        for device in ("veth0", "veth1"):
            assert _program_ids("to_pod_v4", device, generation) == after
        attacher.swap(generation)
        assert _program_ids("to_pod_v4", "veth1", generation) == before


class Swapped(Generation):
    """A generation whose programs are others than those of the one that is its base."""

    def program(self, name: str, family: int):  # type: ignore[no-untyped-def]
        return super().program({"to_pod": "reject"}.get(name, name), family)


def test_a_link_that_is_gone(attacher: Attacher, generation: Generation, veth: int) -> None:
    attacher.attach(veth)
    ip("link del veth0")
    attacher.prune()
    assert pins(generation, veth) == []
    assert attacher.attached() == {}
    attacher.detach(veth)
    with pytest.raises(OSError, match=r"No such device"):
        attacher.attach(veth)


# The watch


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
    """Each goes as soon as it has its first pin, when others are still to come."""
    links = LinkWatcher(attacher, lambda name: name.startswith("veth"))
    async with watching(links):
        for number in range(20):
            brief = await asyncio.to_thread(_brief_link, f"veth{number}", netns, generation)
            await until(lambda brief=brief: pins(generation, brief) == [])
    assert links.attached == links.failed == {}


def _brief_link(name: str, netns: str, generation: Generation) -> int:
    """A link that is removed when the first pin of it is seen; its former ifindex."""
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


def _foreign(attacher: Attacher) -> tuple[str, ...]:
    """tc's words for a filter of somebody else's, with any program."""
    path = attacher._links.parent / "foreign"
    if not path.exists():
        next(iter(attacher._programs.values())).pin(path)
    return "object-pinned", str(path)


def _program_ids(name: str, device: str, generation: Generation) -> set[int]:
    """The programs that `device` runs under this name of ours, by either method."""
    pin = generation.root / "links" / f"{if_nametoindex(device)}-{name}"
    if pin.exists():
        with Link.open(pin) as link:
            return {link.info.program_id}
    words = tc("filter", "show", "dev", device, "egress" if name.startswith("to_pod") else "ingress").splitlines()
    lines = [line for line in words if f"kproxy-ebpf/{name} " in line]
    return {int(line.split(" id ")[1].split()[0]) for line in lines}


@pytest.mark.parametrize("method", METHODS)
def test_an_uplink_has_programs_of_its_own(generation: Generation, veth: int, method: Method) -> None:
    """Each kind of link is another attacher's: neither touches what is the other's."""
    ip("link add uplink0 type veth peer name wire0")
    uplink = if_nametoindex("uplink0")
    with Attacher(generation, method) as pods, Attacher(generation, method, AT_UPLINKS) as uplinks:
        pods.attach(veth)
        uplinks.attach(uplink)
        assert (pods.attached(), uplinks.attached()) == ({veth: method}, {uplink: method})
        hooks = {hook: tc("filter", "show", "dev", "uplink0", hook) for hook in ("ingress", "egress")}
        if method is Method.CLSACT:
            assert ("from_uplink_v6" in hooks["ingress"], "to_uplink_v6" in hooks["egress"]) == (True, True)
        else:
            assert pins(generation, uplink) == sorted(f"{name}_v{family}" for name in AT_UPLINKS for family in (4, 6))
        pods.detach(uplink)
        assert uplinks.attached() == {uplink: method}
        uplinks.detach(veth)
        assert pods.attached() == {veth: method}
        pods.detach(veth)
        uplinks.detach(uplink)
        assert (pods.attached(), uplinks.attached()) == ({}, {})
