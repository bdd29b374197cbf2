"""The thread that adopts or builds the generation."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kproxy_ebpf.daemon import building as under_test
from kproxy_ebpf.daemon.building import Building
from kproxy_ebpf.daemon.options import Options
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.errors import LoadError


class Ensure:
    """Stands for `ensure`: works until `finish` is called or the compiler is stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished = threading.Event()
        self.begun = threading.Event()
        self.refusal: LoadError | None = None

    def __call__(self, *_: object, workshop: Any, **__: object) -> Generation:
        workshop.compiler._tell(True)
        self.begun.set()
        while not self.finished.wait(0.001):
            workshop.compiler.go_on()
        workshop.compiler._tell(False)
        if self.refusal is not None:
            raise self.refusal
        self.path.mkdir()
        return Generation(self.path)


@pytest.fixture
def ensure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ensure:
    stand_in = Ensure(tmp_path / "0123")
    monkeypatch.setattr(under_test, "ensure", stand_in)
    monkeypatch.setattr(under_test, "require_kernel", lambda: None)
    return stand_in


@contextmanager
def building(tmp_path: Path) -> Iterator[Building]:
    with Building(Options(node_name="n1", bpffs=tmp_path, cache_dir=tmp_path)) as work:
        yield work


async def test_others_go_on_while_it_works_and_hear_that_it_compiles(ensure: Ensure, tmp_path: Path) -> None:
    told: list[bool] = []
    with building(tmp_path) as work:
        ensure.begun.wait()
        work.listen(told.append)
        waiting = asyncio.create_task(work.generation())
        await asyncio.sleep(0)
        assert (waiting.done(), told) == (False, [True])
        ensure.finished.set()
        assert (await waiting).path == ensure.path
        await asyncio.sleep(0)
        assert told == [True, False]
    assert ensure.path.exists(), "it was asked for"


async def test_a_refusal_reaches_whoever_asks(ensure: Ensure, tmp_path: Path) -> None:
    ensure.refusal = LoadError("the verifier says no")
    ensure.finished.set()
    with building(tmp_path) as work, pytest.raises(LoadError, match="the verifier says no"):
        await work.generation()


def test_a_start_that_fails_meanwhile_ends_the_work_and_leaves_nothing(ensure: Ensure, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the port is taken"), building(tmp_path):
        raise RuntimeError("the port is taken")
    assert not ensure.path.exists()


def test_a_generation_that_nobody_asked_for_is_removed(ensure: Ensure, tmp_path: Path) -> None:
    with building(tmp_path) as work:
        ensure.finished.set()
        work._thread.join()
        assert ensure.path.exists()
    assert not ensure.path.exists()


async def test_a_wait_that_is_cancelled_does_not_wait_for_the_verifier(ensure: Ensure, tmp_path: Path) -> None:
    with building(tmp_path) as work:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work.generation(), 0.01)
        assert work._thread.is_alive()
    assert not work._thread.is_alive()
    assert sys.getswitchinterval() == pytest.approx(0.005)


async def test_an_end_that_nobody_waits_for_is_no_news(
    ensure: Ensure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The event loop tells of exceptions that nobody has asked for once they are forgotten."""
    with building(tmp_path) as work, pytest.raises(TimeoutError):
        await asyncio.wait_for(work.generation(), 0.01)
    await asyncio.sleep(0)
    gc.collect()
    assert not ensure.finished.is_set()
    assert caplog.records == []
