"""Entries that go from one generation's tables to another's, field by field where the layouts differ.

`old` and `new` are the generations' folders, the new one of this version. A table whose entries can't be told, or have
a field of another size, stays behind, which is logged by its name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import product
from pathlib import Path
from typing import Self

import structlog

from kproxy_ebpf.datapath.bpf import ARRAY, LRU_HASH, NO_EXIST, Map
from kproxy_ebpf.datapath.build import FAMILIES
from kproxy_ebpf.datapath.contract import FLOW_TABLES, SERVICE_TABLES, layouts, pinned_name
from kproxy_ebpf.datapath.layout import Conversion, own_layouts, read_layouts

log = structlog.get_logger(__name__)

_INDEX = struct.Struct("=I")
_PASSES = 2  # the first fetches what is missing; the second, what that learned before it was here


class Stays(Exception):  # noqa: N818 - not an error: that table's entries stay behind
    """A table can't be carried over; the text says why."""


def carry_service_tables(old: Path, new: Path) -> bool:
    """Copy those that are not shared. False, with nothing copied, where one of them stays: they name one another."""
    with ExitStack() as stack:
        passages = []
        for name, family in product(SERVICE_TABLES, FAMILIES):
            try:
                passage = stack.enter_context(Passage(old, new, name, family))
                passage.require_room()
            except Stays as reason:
                _tell(old, pinned_name(name, family), reason)
                return False
            passages.append(passage)
        for passage in passages:
            passage.copy()
    return True


def carry_settings(old: Path, new: Path) -> None:
    """Copy what the programs read while they run, if it is not shared: new connections meet what they met before."""
    try:
        with Passage(old, new, "settings") as passage:
            passage.copy()
    except Stays as reason:
        _tell(old, "settings", reason)


def carry_flows(old: Path, new: Path) -> None:
    """Copy the flow tables that are not shared, over what `new` has at their keys."""
    for name, family in product(FLOW_TABLES, FAMILIES):
        with suppress(Stays), Passage(old, new, name, family) as passage:  # `fetch_flows` will tell
            passage.copy()


def fetch_flows(old: Path, new: Path) -> bool:
    """Add what `new`, which is in use, lacks. False where flows stay behind."""
    carried = {(name, family): _fetch(old, new, name, family) for name, family in product(FLOW_TABLES, FAMILIES)}
    return all(carried["flows", family] for family in FAMILIES)


def shares_flows(old: Path, new: Path) -> bool:
    """Whether the programs of both use the same flow tables."""
    try:
        return all(_id(old, family) == _id(new, family) for family in FAMILIES)
    except FileNotFoundError:
        return False


class Passage:
    """From one table to its namesake; nothing happens where both are one map. A context manager."""

    def __init__(self, old: Path, new: Path, name: str, family: int | None = None) -> None:
        """`family` for all but the shared maps. Raises Stays, OSError."""
        pinned = pinned_name(name, family) if family else name
        theirs, ours = read_layouts(old).get(pinned), own_layouts()[pinned]
        if theirs is None or not (old / "maps" / pinned).exists():
            raise Stays("it is not there, or its layout is not known")
        self._flow = layouts(family).Flow if family and name == "flows" else None
        self._old, self._new = Map.open(old / "maps" / pinned), Map.open(new / "maps" / pinned)
        before, after = self._old.info, self._new.info
        self._is_shared = before.id == after.id
        if before.type != after.type:
            raise Stays("it was a map of another kind")
        try:
            self._key = Conversion(theirs.key, ours.key, before.key_size, after.key_size)
            self._value = Conversion(theirs.value, ours.value, before.value_size, after.value_size)
        except ValueError as error:
            raise Stays(str(error)) from error

    def require_room(self) -> None:
        """Raises Stays where `new` has no room for everything. A full LRU makes room."""
        room = self._new.info.max_entries
        if self._is_shared or self._new.info.type == LRU_HASH or room >= self._old.info.max_entries:
            return
        if self._new.info.type == ARRAY:
            fits = not any(_is_used(values) for _, values in self._elements(room, self._old.info.max_entries))
        else:
            fits = self._old.count() <= room
        if not fits:
            raise Stays("there is no room for all of it")

    def copy(self) -> None:
        """Write all entries; of an array, what is used."""
        if self._is_shared:
            return
        is_array = self._new.info.type == ARRAY
        for keys, values in self._elements(0, self._new.info.max_entries) if is_array else self._old.chunks():
            if not is_array or _is_used(values):
                self._new.update_batch(self._key(keys), self._value(values))

    def add_missing(self) -> None:
        """Write the entries that `new` lacks or knows less of, while programs use it."""
        for _ in range(0 if self._is_shared else _PASSES):
            for key, value in self._converted():
                present = self._new.lookup(key)  # first: nearly all are there, and a refusal costs four times as much
                if present is None:
                    with suppress(FileExistsError):
                        self._new.update(key, value, NO_EXIST)
                elif present != value and self._is_further(value, present):
                    self._new.update(key, value)

    def close(self) -> None:
        self._old.close()
        self._new.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_further(self, value: bytes, present: bytes) -> bool:
        """Whether both are one connection, of which `value` knows more: a handshake that ended after the copy."""
        if self._flow is None:
            return False
        one, other = self._flow.from_buffer_copy(value), self._flow.from_buffer_copy(present)
        is_same = bytes(one.to) == bytes(other.to) and one.created_seconds == other.created_seconds
        return is_same and bool(one.state > other.state)

    def _converted(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, one by one."""
        key_size, value_size = self._new.info.key_size, self._new.info.value_size
        for keys, values in self._old.chunks():
            new_keys, new_values = self._key(keys), self._value(values)
            for number in range(len(new_keys) // key_size):
                key = new_keys[number * key_size : (number + 1) * key_size]
                yield key, new_values[number * value_size : (number + 1) * value_size]

    def _elements(self, begin: int, end: int) -> Iterator[tuple[bytes, bytes]]:
        """An array's elements from index `begin` up to `end`."""
        key_size, value_size = self._old.info.key_size, self._old.info.value_size
        for keys, values in self._old.chunks():
            first = _INDEX.unpack_from(keys)[0] if keys else end
            start, stop = max(begin - first, 0), max(end - first, 0)
            yield keys[start * key_size : stop * key_size], values[start * value_size : stop * value_size]


def _fetch(old: Path, new: Path, name: str, family: int) -> bool:
    try:
        with Passage(old, new, name, family) as passage:
            passage.add_missing()
    except Stays as reason:
        _tell(old, pinned_name(name, family), reason)
        return False
    return True


def _tell(old: Path, table: str, reason: Stays) -> None:
    log.warning("a table is not carried over", table=table, generation=old.name, reason=str(reason))


def _id(generation: Path, family: int) -> int:
    with Map.open(generation / "maps" / pinned_name("flows", family)) as flows:
        return flows.info.id


def _is_used(values: bytes) -> bool:
    return values.count(0) < len(values)
