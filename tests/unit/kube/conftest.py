"""A small API server on loopback, and reflectors that watch its Services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from fake_api import SERVICES, FakeApi, service
from watching import TOKEN, Watched

from kproxy_ebpf.kube.client import Client


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    fake = await FakeApi().start()
    fake.put(SERVICES, service("a"))
    fake.put(SERVICES, service("b"))
    yield fake
    await fake.stop()


@pytest.fixture
async def client(api, tmp_path) -> AsyncIterator[Client]:
    made = await Client.from_kubeconfig(api.kubeconfig(tmp_path, token=TOKEN))
    yield made
    await made.aclose()


@pytest.fixture
async def watch(client) -> AsyncIterator[Callable[..., Watched]]:
    started: list[Watched] = []

    def start(**options) -> Watched:
        started.append(Watched(client, **options))
        return started[-1]

    yield start
    for each in started:
        each.task.cancel()
    await asyncio.gather(*(each.task for each in started), return_exceptions=True)


@pytest.fixture
def naps() -> list[float]:
    """How long the reflector of a test meant to sleep."""
    return []


@pytest.fixture
def nap(naps) -> Callable[[float], Awaitable[None]]:
    async def note(seconds: float) -> None:
        naps.append(seconds)
        await asyncio.sleep(0)

    return note
