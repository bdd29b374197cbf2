"""A level-triggered queue: what is dirty is worked on in short batches, what failed is tried again with back-off.

A mark says only that something is to be worked on, from the newest state, so any number of marks before that cost one
piece of work. Nothing is worked on before the worker is ready. One event loop, no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, NoReturn, Protocol, TypeVar

Name = TypeVar("Name")
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class BatchTiming:
    """Seconds. `window`: how long marks are gathered before a batch; 0 is the next turn of the loop. `batch`: how long
    a batch may hold the loop. `first_retry` doubles up to `last_retry`, and is shortened at random by up to half.
    """

    window: float = 0.0
    batch: float = 0.005
    first_retry: float = 0.1
    last_retry: float = 30.0


class Worker(Protocol[Name]):
    """Who works on what is dirty."""

    def is_ready(self) -> bool:
        """True once everything that the work depends on is known; nothing is begun before."""

    def start(self) -> Iterable[Name]:
        """The worker is ready for the first time: everything there is, in the order in which to work on it."""

    def work(self, names: Iterator[Name]) -> None:
        """Work on one batch. `names` ends when the batch has taken long enough."""

    def retry(self) -> None:
        """Try again what `DirtyQueue.retry_later` was called for."""

    def drained(self) -> None:
        """Nothing is dirty."""


class DirtyQueue(Generic[Name]):
    """Names that are dirty, the longest first, and when to work on them."""

    def __init__(self, timing: BatchTiming | None = None, clock: Clock = time.monotonic) -> None:
        self.is_started = False
        """The worker has been ready once."""
        self._timing = timing or BatchTiming()
        self._clock = clock
        self._dirty: OrderedDict[Name, float] = OrderedDict()  # since when, the oldest first
        self._wake = asyncio.Event()
        self._retry_seconds = 0.0
        self._retry_at: float | None = None

    def __len__(self) -> int:
        """How many names are dirty."""
        return len(self._dirty)

    @property
    def oldest(self) -> float | None:
        """Since when (by the clock) the oldest dirty name waits; None without one."""
        return next(iter(self._dirty.values()), None)

    def mark(self, names: Iterable[Name]) -> None:
        """These are dirty. A name that is so already keeps its place."""
        now = self._clock()
        for name in names:
            self._dirty.setdefault(name, now)

    def wake(self) -> None:
        """Names were marked, or the worker may have become ready."""
        self._wake.set()

    def retry_later(self) -> None:
        """Call the worker's `retry` after a while, longer each time until `reset_back_off`."""
        if self._retry_at is None:
            timing = self._timing
            self._retry_seconds = min(max(timing.first_retry, 2 * self._retry_seconds), timing.last_retry)
            jitter = random.uniform(0.5, 1.0)  # noqa: S311, no secret
            self._retry_at = self._clock() + self._retry_seconds * jitter

    def reset_back_off(self) -> None:
        """All is well: the next failure is the first one."""
        self._retry_seconds = 0.0

    async def run(self, worker: Worker[Name]) -> NoReturn:
        """Work until cancelled."""
        while True:
            await self._sleep()
            if not worker.is_ready():
                continue
            await asyncio.sleep(self._timing.window)
            if not self.is_started:
                self._start(worker.start())
            if self._retry_at is not None and self._clock() >= self._retry_at:
                self._retry_at = None
                worker.retry()
            while self._dirty:
                worker.work(self._batch())
                await asyncio.sleep(0)
            worker.drained()

    async def _sleep(self) -> None:
        """Until there is something to do."""
        timeout = None if self._retry_at is None else max(0.0, self._retry_at - self._clock())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        self._wake.clear()

    def _start(self, names: Iterable[Name]) -> None:
        """Everything is dirty from now on, in the order of `names`; what was marked besides comes last."""
        self.is_started = True
        since = self._clock()
        self._dirty = OrderedDict((name, since) for name in [*names, *self._dirty])

    def _batch(self) -> Iterator[Name]:
        until = self._clock() + self._timing.batch
        while self._dirty:
            yield self._dirty.popitem(last=False)[0]
            if self._clock() >= until:
                return
