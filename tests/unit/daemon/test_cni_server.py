"""Requests of the CNI plugin, over a real socket; links are pretended."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kproxy_ebpf.daemon import cni_server
from kproxy_ebpf.daemon.cni_server import TOPIC, CniServer, rights_problem
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux.netns import NamespaceGoneError
from kproxy_ebpf.linux.veth import HostLink
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics

RESULT = '{"cniVersion": "1.0.0",  "interfaces": []}'
VETH = HostLink(7, "veth7")


class FakeLinks:
    """`refusal`: why programs can't be attached. `whole`: what CHECK finds."""

    def __init__(self) -> None:
        self.equipped: list[HostLink] = []
        self.refusal = ""
        self.whole = True

    async def equip(self, ifindex: int, name: str) -> bool:
        if self.refusal:
            raise NodeError(self.refusal)
        self.equipped.append(HostLink(ifindex, name))
        return True

    async def is_as_wanted(self, *_: object) -> bool:
        return self.whole


class Served:
    """A server with pretended links; `found` is what the pod's interfaces lead to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run" / "cni.sock"
        self.links = FakeLinks()
        self.in_force = asyncio.Event()
        self.in_force.set()
        self.health, self.metrics = Health(60), Metrics()
        self.found: dict[str, HostLink | None] | OSError = {"eth0": VETH}
        self.asked: list[tuple[str, ...]] = []
        self.server = CniServer(self.path, self.links, self.in_force.wait, self.metrics, self.health)  # type: ignore[arg-type]

    def host_links(self, netns: int, names: tuple[str, ...]) -> dict[str, HostLink | None]:
        os.fstat(netns)  # it is open
        self.asked.append(names)
        if isinstance(self.found, OSError):
            raise self.found
        return self.found

    async def ask(self, command: str = "ADD", *, result: str = RESULT, netns: bool = True) -> tuple[int, str]:
        words = ["KPROXY_CNI=1", f"CNI_COMMAND={command}", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0"]
        config = f'{{"cniVersion": "1.0.0", "prevResult": {result}}}'
        data = "".join(f"{word}\0" for word in words).encode() + b"\0" + config.encode()
        with self.connected() as plugin:
            descriptors = [os.open("/proc/self/ns/net", os.O_RDONLY)] if netns else []
            socket.send_fds(plugin, [data[:5]], descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            await asyncio.get_running_loop().sock_sendall(plugin, data[5:])
            plugin.shutdown(socket.SHUT_WR)
            return await self.answer(plugin)

    def connected(self) -> socket.socket:
        plugin = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plugin.connect(str(self.path))
        plugin.setblocking(False)
        return plugin

    async def answer(self, plugin: socket.socket) -> tuple[int, str]:
        data, loop = b"", asyncio.get_running_loop()
        async with asyncio.timeout(10):
            while chunk := await loop.sock_recv(plugin, 1 << 16):
                data += chunk
        code, length = struct.unpack_from("=II", data)
        assert len(data) == 8 + length
        return code, data[8:].decode()

    async def refused(self, *arguments: str, **options: bool) -> int:
        exit_code, text = await self.ask(*arguments, **options)
        assert exit_code == 1
        body = json.loads(text)
        assert body["msg"]
        return int(body["code"])

    def count(self, command: str, code: int) -> float:
        return self.metrics.cni_answers.labels(command, str(code))._value.get()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def running(served: Served) -> AsyncIterator[None]:
    task = asyncio.create_task(served.server.run())
    try:
        await until(served.path.exists)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    made = Served(tmp_path)
    monkeypatch.setattr(cni_server, "host_links", made.host_links)
    async with running(made):
        before = open_descriptors()
        yield made
        await until(lambda: open_descriptors() <= before)


async def test_an_add_equips_the_link_and_hands_the_result_on(served: Served) -> None:
    assert await served.ask() == (0, RESULT)
    assert await served.ask() == (0, RESULT), "asked twice, it answers twice"
    assert served.links.equipped == [VETH, VETH]
    assert served.count("ADD", 0) == 2


async def test_it_answers_when_the_programs_are_there(served: Served) -> None:
    served.in_force.clear()
    asking = asyncio.create_task(served.ask())
    done, _ = await asyncio.wait([asking], timeout=0.3)
    assert not done
    served.in_force.set()
    assert await asking == (0, RESULT)


async def test_settings_that_are_not_in_force_in_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_server, "IN_FORCE_SECONDS", 0.05)
    served.in_force.clear()
    assert await served.refused() == 11
    assert await served.refused("STATUS") == 50
    assert served.links.equipped == []


async def test_both_links_of_a_pod_with_two_interfaces(served: Served) -> None:
    served.found = {"eth0": VETH, "net1": HostLink(8, "veth8"), "net2": None}
    entries = ", ".join(f'{{"name": "{name}", "sandbox": "/run/netns/c1"}}' for name in ("eth0", "net1", "net2"))
    result = f'{{"interfaces": [{entries}]}}'
    assert await served.ask(result=result) == (0, result)
    assert served.asked == [("eth0", "net1", "net2")]
    assert [link.name for link in served.links.equipped] == ["veth7", "veth8"]


async def test_a_pod_without_a_link_on_the_host_is_wired_all_the_same(served: Served) -> None:
    served.found = {"eth0": None}
    assert await served.ask() == (0, RESULT)
    assert served.links.equipped == []


async def test_check_prints_nothing_and_finds_what_is_lost(served: Served) -> None:
    assert await served.ask("CHECK") == (0, "")
    served.links.whole = False
    assert await served.refused("CHECK") == 101
    assert served.links.equipped == [], "it repairs nothing"


async def test_status(served: Served) -> None:
    assert await served.ask("STATUS", netns=False) == (0, "")
    assert served.asked == []


async def test_what_goes_wrong_has_its_code(served: Served) -> None:
    assert await served.refused(netns=False) == 4
    served.found = {}
    assert await served.refused() == 100
    served.found = NamespaceGoneError(22, "Invalid argument")
    assert await served.refused() == 4
    served.found = OSError(12, "no memory")
    assert await served.refused() == 5
    served.found = {"eth0": VETH}
    served.links.refusal = "an ingress qdisc stands there"
    assert await served.refused() == 11
    assert await served.refused("NONE") == 4
    assert (served.count("ADD", 11), served.count("", 4)) == (1, 1)
    served.links.refusal = ""
    assert await served.ask() == (0, RESULT)


async def test_whoever_says_nothing_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_server, "REQUEST_SECONDS", 0.1)
    silent = [served.connected() for _ in range(cni_server.MAX_CONNECTIONS + 3)]
    assert await served.ask() == (0, RESULT)
    for plugin in silent:
        async with asyncio.timeout(5):
            assert await asyncio.get_running_loop().sock_recv(plugin, 1) == b""
        plugin.close()


async def test_a_request_without_an_end_is_not_read_for_ever(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_server, "REQUEST_MAX_BYTES", 1 << 16)
    with served.connected() as plugin, pytest.raises((ConnectionResetError, BrokenPipeError)):
        await asyncio.get_running_loop().sock_sendall(plugin, bytes(1 << 22))
    assert await served.ask() == (0, RESULT)


async def test_a_plugin_that_ends_before_its_answer(served: Served) -> None:
    with served.connected() as plugin:
        plugin.send(b"KPROXY_CNI=1\0")
    assert await served.ask() == (0, RESULT)


async def test_the_socket_is_roots_alone_and_takes_the_place_of_an_old_one(served: Served) -> None:
    assert served.path.stat().st_mode & 0o777 == 0o600
    async with running(served):  # a second one, as after a daemon that was killed
        assert await served.ask() == (0, RESULT)
    assert list(served.path.parent.iterdir()) == [served.path]


async def test_another_user_is_not_answered(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_server, "_is_roots", lambda _: False)
    with pytest.raises((struct.error, ConnectionError)):
        await served.ask()
    assert served.asked == []


async def test_a_folder_that_others_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_server, "RIGHTS_SECONDS", 0.02)
    served = Served(tmp_path)
    served.path.parent.mkdir()
    served.path.parent.chmod(0o777)
    task = asyncio.create_task(served.server.run())
    await until(lambda: TOPIC in served.health.problems)
    assert "chmod 755" in served.health.problems[TOPIC]
    assert not served.path.exists()
    served.path.parent.chmod(0o755)
    await until(served.path.exists)
    assert TOPIC not in served.health.problems
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "can't be served" in str(rights_problem(tmp_path / "file" / "run"))
