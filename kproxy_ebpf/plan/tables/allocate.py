"""Hands out ids and slot ranges, and keeps what was given back at rest before it is used again.

A program on another CPU may still hold an id or a range that it read from an entry replaced a moment ago. So nothing
is reused before QUARANTINE_SECONDS, far longer than a packet lives in a program.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from kproxy_ebpf.errors import MapFullError

Clock = Callable[[], float]
"""Seconds of a clock that never goes back."""

QUARANTINE_SECONDS = 2.0
LONG_AGO = float("-inf")


class IdPool:
    """Ids 1 to `capacity` - 1 (the elements of an array whose element 0 is never used).

    An id that has rested for `rest_seconds` is reused first, the one released longest ago before others; then the
    lowest that was never used; in need one that has rested for the quarantine only. A longer rest serves those who
    still remember an id: an idle TCP flow learns of its dead backend only as long as the id is not another's.
    """

    def __init__(
        self,
        table: str,
        capacity: int,
        clock: Clock,
        rest_seconds: float = QUARANTINE_SECONDS,
        quarantine_seconds: float = QUARANTINE_SECONDS,
    ) -> None:
        self.table = table
        self.capacity = capacity
        self._clock = clock
        self._rest_seconds = max(rest_seconds, quarantine_seconds)
        self._quarantine_seconds = quarantine_seconds
        self._unused = 1
        self._resting: OrderedDict[int, float] = OrderedDict()

    def adopt(self, used: Iterable[int], released: Iterable[int]) -> None:
        """Start from what was found: `used` ids, and `released` ones, which begin their rest now."""
        taken, resting = set(used), sorted(released)
        self._unused = max(taken.union(resting), default=0) + 1
        holes = set(range(1, self._unused)) - taken - set(resting)
        self._resting = OrderedDict((number, LONG_AGO) for number in sorted(holes))
        now = self._clock()
        self._resting.update((number, now) for number in resting)

    def take(self) -> int:
        """An id for a new owner. Raises MapFullError."""
        rested = self._rested_seconds()
        if rested < self._rest_seconds and self._unused < self.capacity:
            self._unused += 1
            return self._unused - 1
        if rested < self._quarantine_seconds:
            raise MapFullError(self.table, self.capacity)
        return self._resting.popitem(last=False)[0]

    def release(self, number: int) -> None:
        """The id is no one's from now on."""
        self._resting[number] = self._clock()

    def reclaim(self, number: int) -> bool:
        """Give a released id back to its last owner. False where it has been handed out since."""
        return self._resting.pop(number, None) is not None

    def undo(self, number: int) -> None:
        """An id was taken but never written: it is the next to be handed out."""
        self._resting[number] = LONG_AGO
        self._resting.move_to_end(number, last=False)

    def used(self) -> int:
        """How many ids have an owner."""
        return self._unused - 1 - len(self._resting)

    def _rested_seconds(self) -> float:
        if not self._resting:
            return -1.0
        return self._clock() - next(iter(self._resting.values()))


class RangeAllocator:
    """Ranges of exact length in an array of `capacity` elements; best fit, neighbours are joined again when free."""

    def __init__(self, table: str, capacity: int, clock: Clock, quarantine_seconds: float = QUARANTINE_SECONDS) -> None:
        self.table = table
        self.capacity = capacity
        self._clock = clock
        self._quarantine_seconds = quarantine_seconds
        self._resting: deque[tuple[float, int, int]] = deque()  # when, base, count
        self._by_size: list[tuple[int, int]] = []  # (count, base), ascending
        self._count_at: dict[int, int] = {}  # base -> count
        self._base_before: dict[int, int] = {}  # end -> base
        self._free = 0
        self._insert(0, capacity)

    def adopt(self, used: Iterable[tuple[int, int]]) -> None:
        """Start from the ranges (base, count) that are in use. All else is free: no packet outlives a restart."""
        self._resting.clear()
        self._by_size.clear()
        self._count_at.clear()
        self._base_before.clear()
        self._free = end = 0
        for base, count in sorted(set(used)):
            self._insert(end, base - end)
            end = max(end, base + count)
        self._insert(end, self.capacity - end)

    def take(self, count: int) -> int:
        """The base of a fresh range. Raises MapFullError where no free stretch is long enough."""
        self._wake()
        index = bisect_left(self._by_size, (count, 0))
        if index == len(self._by_size):
            raise MapFullError(self.table, self.capacity)
        length, base = self._by_size[index]
        self._remove(base, length)
        self._insert(base + count, length - count)
        return base

    def release(self, base: int, count: int) -> None:
        """The range is no longer pointed at. It rests first."""
        self._resting.append((self._clock(), base, count))

    def undo(self, base: int, count: int) -> None:
        """The range was taken but never written."""
        self._join(base, count)

    def used(self) -> int:
        """How many elements are in use or at rest."""
        self._wake()
        return self.capacity - self._free

    def _wake(self) -> None:
        limit = self._clock() - self._quarantine_seconds
        while self._resting and self._resting[0][0] <= limit:
            _, base, count = self._resting.popleft()
            self._join(base, count)

    def _join(self, base: int, count: int) -> None:
        before = self._base_before.get(base)
        if before is not None:
            length = self._count_at[before]
            self._remove(before, length)
            base, count = before, count + length
        after = self._count_at.get(base + count)
        if after is not None:
            self._remove(base + count, after)
            count += after
        self._insert(base, count)

    def _insert(self, base: int, count: int) -> None:
        if count > 0:
            self._free += count
            insort(self._by_size, (count, base))
            self._count_at[base] = count
            self._base_before[base + count] = base

    def _remove(self, base: int, count: int) -> None:
        self._free -= count
        del self._by_size[bisect_left(self._by_size, (count, base))]
        del self._count_at[base]
        del self._base_before[base + count]
