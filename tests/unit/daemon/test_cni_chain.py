"""Our plugin in the node's list, as settings, agents and programs come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kproxy_ebpf.cni.conflist import PLUGIN, entry_of, has_plugin
from kproxy_ebpf.config import SettingsKeeper, parse_settings
from kproxy_ebpf.daemon import cni_chain
from kproxy_ebpf.daemon.cni_chain import TOPIC, ChainKeeper, Patience
from kproxy_ebpf.linux import files
from kproxy_ebpf.observe.health import Health

LIST = '{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "ptp"}]}\n'


class Node:
    """A node's folders, and a keeper of its chain."""

    def __init__(self, folder: Path) -> None:
        self.conf, self.bin = folder / "net.d", folder / "bin"
        self.conf.mkdir()
        self.bin.mkdir()
        (self.bin / PLUGIN).touch(0o755)
        self.list = self.conf / "10-a.conflist"
        self.list.write_text(LIST)
        self.settings = SettingsKeeper()
        self.health = Health(60)
        self.served = asyncio.Event()
        self.served.set()
        self.chain = ChainKeeper(self.conf, self.bin, entry_of(), self.served, self.settings, self.health)

    def set(self, cni: str) -> None:
        self.settings.offer(lambda: parse_settings({"cni": cni}).plain())

    @property
    def is_in(self) -> bool:
        return has_plugin(self.list.read_text()) if self.list.exists() else False

    @property
    def problem(self) -> str:
        return self.health.problems.get(TOPIC, "")

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - files have no event
                await asyncio.sleep(0.01)


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(files, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(cni_chain, "REST_MAX_SECONDS", 0.02)
    made = Node(tmp_path)
    task = asyncio.create_task(made.chain.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_goes_in_and_out_with_the_setting(node: Node) -> None:
    await asyncio.sleep(0.2)
    assert not node.is_in, "the default is none"
    node.set("chain")
    await node.until(lambda: node.is_in)
    await node.until(lambda: node.chain.state == f"{PLUGIN} is in {node.list}")
    assert node.problem == ""
    node.set("none")
    await node.until(lambda: node.list.read_text() == LIST)
    await node.until(lambda: node.chain.state == "")


async def test_it_is_put_back_when_another_agent_writes_the_list(node: Node) -> None:
    node.set("chain")
    await node.until(lambda: node.is_in)
    (beside := node.conf / "new").write_text(LIST)
    beside.replace(node.list)
    await node.until(lambda: node.is_in)
    with node.list.open("r+") as file:  # in place
        file.truncate()
        file.write(LIST)
    await node.until(lambda: node.is_in)


async def test_a_list_that_comes_late(node: Node) -> None:
    node.list.unlink()
    node.set("chain")
    await node.until(lambda: "no CNI configuration yet" in node.problem)
    assert list(node.conf.iterdir()) == []
    node.list.write_text(LIST)
    await node.until(lambda: node.is_in and not node.problem)


async def test_a_folder_that_is_made_anew(node: Node) -> None:
    node.list.unlink()
    node.conf.rmdir()
    node.set("chain")
    await node.until(lambda: "can't be" in node.problem)
    node.conf.mkdir()
    node.list.write_text(LIST)
    await node.until(lambda: node.is_in and not node.problem)
    node.conf.rename(node.conf.with_name("old"))
    node.conf.mkdir()
    node.list.write_text(LIST)
    await node.until(lambda: node.is_in)


async def test_a_list_that_is_half_written_is_waited_for(node: Node) -> None:
    node.list.write_text(LIST[:30])
    node.set("chain")
    await node.until(lambda: "no JSON" in node.problem)
    assert node.list.read_text() == LIST[:30]
    node.list.write_text(LIST)
    await node.until(lambda: node.is_in and not node.problem)


async def test_without_a_program_it_is_not_in_the_list(node: Node) -> None:
    (node.bin / PLUGIN).unlink()
    node.set("chain")
    await node.until(lambda: "install-cni" in node.problem)
    assert not node.is_in
    (node.bin / PLUGIN).touch(0o755)
    await node.until(lambda: node.is_in and not node.problem)
    (node.bin / PLUGIN).unlink()
    await node.until(lambda: not node.is_in)


async def test_without_an_answer_it_is_not_in_the_list(node: Node) -> None:
    node.served.clear()
    node.set("chain")
    await node.until(lambda: "would not be answered" in node.problem)
    assert not node.is_in
    node.served.set()
    await node.until(lambda: node.is_in and not node.problem)


async def test_a_list_that_can_not_be_written_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise PermissionError(30, "Read-only file system", str(node.list))

    with monkeypatch.context() as patch:
        patch.setattr(cni_chain, "put_in", refuse)
        node.set("chain")
        await node.until(lambda: "Read-only" in node.problem)
    await node.until(lambda: node.is_in and not node.problem)


async def test_another_agent_that_takes_it_out_every_time_is_told(node: Node) -> None:
    node.set("chain")
    for _ in range(cni_chain.STRIFE_COUNT):
        await node.until(lambda: node.is_in)
        node.list.write_text(LIST)
    await node.until(lambda: "another agent" in node.problem)


def test_patience() -> None:
    now = 1000.0
    patience = Patience(lambda: now)
    assert patience.rest_seconds <= 0
    rests = []
    for _ in range(8):
        patience.put()
        rests.append(patience.rest_seconds)
        now += rests[-1]
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60]
    assert patience.is_strife
    now += cni_chain.STEADY_SECONDS
    assert not patience.is_strife
    patience.put()
    assert (patience.rest_seconds, patience.is_strife) == (1, False)
