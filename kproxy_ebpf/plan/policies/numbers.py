"""Numbers for classes, subjects and port sets, each counted as long as something leads to it.

What nothing leads to any longer is `idle` until the end of the plan, since a later write of the same plan may need it
again. A number that was in the maps rests before it is another's (plan/tables/allocate.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.policies import PortRange
from kproxy_ebpf.model.policy_tables import MAX_ROWS, ROW_RANGES, PortSetRow
from kproxy_ebpf.plan.tables.allocate import Clock, IdPool

Key = TypeVar("Key", bound=Hashable)
NOT_USED: frozenset[int] = frozenset()


@dataclass(slots=True)
class Entry(Generic[Key]):
    key: Key
    users: int = 0


class Numbers(Generic[Key]):
    """Numbers for keys of one kind, found by what the key contains, too. `reserved` numbers are never given out."""

    def __init__(self, table: str, capacity: int, clock: Clock, reserved: Iterable[int] = ()) -> None:
        self._pool = IdPool(table, capacity, clock)
        self._pool.adopt(reserved, ())
        self._entries: dict[int, Entry[Key]] = {}
        self._numbers: dict[Key, int] = {}
        self._parts: dict[Hashable, set[int]] = {}
        self._idle: set[int] = set()
        self._released: list[int] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def key(self, number: int) -> Key:
        return self._entries[number].key

    def find(self, key: Key) -> int | None:
        return self._numbers.get(key)

    def add(self, key: Key, parts: Iterable[Hashable]) -> int:
        """A number for a new key, used by nobody so far. Raises MapFullError."""
        number = self._pool.take()
        self._entries[number] = Entry(key)
        self._numbers[key] = number
        self._idle.add(number)
        for part in parts:
            self._parts.setdefault(part, set()).add(number)
        return number

    def use(self, number: int) -> None:
        self._entries[number].users += 1
        self._idle.discard(number)

    def leave(self, number: int) -> None:
        entry = self._entries[number]
        entry.users -= 1
        if not entry.users:
            self._idle.add(number)

    def with_part(self, part: Hashable) -> frozenset[int] | set[int]:
        """The numbers of keys that have `part`."""
        return self._parts.get(part, NOT_USED)

    def idle(self) -> list[int]:
        return sorted(self._idle)

    def remove(self, number: int, parts: Iterable[Hashable]) -> None:
        """The number is no key's any longer. It rests from `commit` on."""
        del self._numbers[self._entries.pop(number).key]
        self._idle.discard(number)
        for part in parts:
            having = self._parts[part]
            having.discard(number)
            if not having:
                del self._parts[part]
        self._released.append(number)

    def commit(self) -> None:
        """Nothing in the maps leads to what was removed."""
        for number in self._released:
            self._pool.release(number)
        self._released = []


class PortSets:
    """Numbers for sets of ports. A set is a chain of rows; its number is that of the first one."""

    def __init__(self, capacity: int, clock: Clock) -> None:
        self.capacity = capacity
        self._pool = IdPool("port_sets", capacity, clock)
        self._rows: dict[tuple[PortRange, ...], list[int]] = {}
        self._users: dict[int, int] = {}
        self._keys: dict[int, tuple[PortRange, ...]] = {}
        self._released: list[int] = []

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def use(self, ranges: tuple[PortRange, ...], staged: dict[int, PortSetRow]) -> int:
        """The number of a set, its rows staged if it is new. Raises MapFullError."""
        rows = self._rows.get(ranges)
        if rows is None:
            rows = self._rows[ranges] = self._take(ranges)
            parts = [ranges[start : start + ROW_RANGES] for start in range(0, len(ranges), ROW_RANGES)]
            for number, part, following in zip(rows, parts, [*rows[1:], 0], strict=True):
                staged[number] = PortSetRow(part, following)
            self._keys[rows[0]] = ranges
        self._users[rows[0]] = self._users.get(rows[0], 0) + 1
        return rows[0]

    def leave(self, number: int) -> None:
        self._users[number] -= 1

    def remove_idle(self) -> None:
        """Sets that nobody uses are none any longer. Their numbers rest from `commit` on."""
        for number in [number for number, users in self._users.items() if not users]:
            del self._users[number]
            self._released += self._rows.pop(self._keys.pop(number))

    def commit(self) -> None:
        for number in self._released:
            self._pool.release(number)
        self._released = []

    def _take(self, ranges: tuple[PortRange, ...]) -> list[int]:
        if len(ranges) > MAX_ROWS * ROW_RANGES:
            raise MapFullError("port_sets", MAX_ROWS * ROW_RANGES)
        taken: list[int] = []
        try:
            taken.extend(self._pool.take() for _ in range(0, len(ranges), ROW_RANGES))
        except MapFullError:
            for number in reversed(taken):
                self._pool.undo(number)
            raise
        return taken
