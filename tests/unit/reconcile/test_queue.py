"""The queue by itself: order, batches, waiting and back-off, on a clock of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator

import pytest

from kproxy_ebpf.reconcile.queue import BatchTiming, DirtyQueue


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Recorder:
    """A worker that takes a second for each name, and can be told to fail."""

    def __init__(self, queue: DirtyQueue[str], clock: Clock, existing: Iterable[str] = ()) -> None:
        self.queue, self.clock, self.existing = queue, clock, existing
        self.ready, self.failing = True, False
        self.batches: list[list[str]] = []
        self.retries: list[float] = []
        self.times_drained = 0

    def is_ready(self) -> bool:
        return self.ready

    def start(self) -> Iterable[str]:
        return self.existing

    def work(self, names: Iterator[str]) -> None:
        batch = []
        for name in names:
            batch.append(name)
            self.clock.now += 1
        self.batches.append(batch)

    def retry(self) -> None:
        self.retries.append(self.clock.now)
        if self.failing:
            self.queue.retry_later()

    def drained(self) -> None:
        self.times_drained += 1


@pytest.fixture
def clock():
    return Clock()


async def turn(queue: DirtyQueue[str], worker: Recorder) -> None:
    """Let the queue do all there is to do, woken once."""
    queue.wake()
    task = asyncio.create_task(queue.run(worker))
    for _ in range(50):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_everything_comes_first_and_in_the_workers_order(clock):
    queue = DirtyQueue[str](BatchTiming(batch=9), clock)
    worker = Recorder(queue, clock, ["b", "a"])
    queue.mark(["c", "a"])
    await turn(queue, worker)
    assert worker.batches == [["b", "a", "c"]]
    assert worker.times_drained == 1


async def test_nothing_is_begun_before_the_worker_is_ready(clock):
    queue = DirtyQueue[str](clock=clock)
    worker = Recorder(queue, clock, ["a"])
    worker.ready = False
    await turn(queue, worker)
    assert (worker.batches, worker.times_drained, queue.is_started) == ([], 0, False)
    worker.ready = True
    await turn(queue, worker)
    assert worker.batches == [["a"]]


async def test_a_batch_ends_when_it_has_taken_long_enough(clock):
    queue = DirtyQueue[str](BatchTiming(batch=2), clock)
    worker = Recorder(queue, clock, "abcde")
    await turn(queue, worker)
    assert worker.batches == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_mark_keeps_its_place_and_its_time(clock):
    queue = DirtyQueue[str](BatchTiming(batch=9), clock)
    worker = Recorder(queue, clock)
    await turn(queue, worker)
    assert queue.oldest is None
    queue.mark(["x"])
    clock.now += 5
    queue.mark(["y", "x"])
    assert (queue.oldest, len(queue)) == (100.0, 2)
    await turn(queue, worker)
    assert worker.batches == [["x", "y"]]
    assert queue.oldest is None


async def test_retries_come_later_each_time_and_not_before_their_time(clock, monkeypatch):
    monkeypatch.setattr("kproxy_ebpf.reconcile.queue.random.uniform", lambda _, most: most)
    queue = DirtyQueue[str](BatchTiming(first_retry=1, last_retry=4), clock)
    worker = Recorder(queue, clock)
    worker.failing = True
    queue.retry_later()
    began = clock.now
    for _ in range(14):
        await turn(queue, worker)
        clock.now += 0.5 if clock.now < began + 1 else 1
    assert [at - began for at in worker.retries] == [1, 3, 7, 11]
    worker.failing = False
    queue.reset_back_off()
    clock.now = began + 15
    await turn(queue, worker)
    queue.retry_later()
    clock.now += 1
    await turn(queue, worker)
    assert [at - began for at in worker.retries[4:]] == [15, 16]


async def test_a_failure_is_retried_without_being_woken():
    queue = DirtyQueue[str](BatchTiming(first_retry=0.01))
    worker = Recorder(queue, Clock())
    queue.retry_later()
    task = asyncio.create_task(queue.run(worker))
    async with asyncio.timeout(5):
        while not worker.retries:  # noqa: ASYNC110, the worker has no event to wait for
            await asyncio.sleep(0.001)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
