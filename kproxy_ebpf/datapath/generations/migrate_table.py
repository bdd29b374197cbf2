"""Migrates one table: from the generation before to the table of the same name in the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from kproxy_ebpf.contract.maps import pinned_name
from kproxy_ebpf.contract.scalars import U32
from kproxy_ebpf.datapath.generations.schema import Conversion, own_layouts, read_layouts
from kproxy_ebpf.linux.bpf import ARRAY, LRU_HASH, NO_EXIST, Map

_PASSES = 2  # the second copies what entries have learned between their reading and their writing in the first


class NotMigratedError(Exception):
    """A table can't be migrated; the text says why."""


class TableMigration:
    """From one table to the one of the same name. Nothing happens if both are one map. A context manager."""

    def __init__(self, old: Path, new: Path, name: str, family: int | None = None) -> None:
        """`family` for all but the shared maps. Raises NotMigratedError, OSError."""
        pinned = pinned_name(name, family) if family else name
        theirs, ours = read_layouts(old).get(pinned), own_layouts()[pinned]
        if theirs is None or not (old / "maps" / pinned).exists():
            raise NotMigratedError("it is not there, or its layout is not known")
        self._old, self._new = Map.open(old / "maps" / pinned), Map.open(new / "maps" / pinned)
        before, after = self._old.info, self._new.info
        self._is_shared = before.id == after.id
        if before.type != after.type:
            raise NotMigratedError("it was a map of another kind")
        try:
            self._key = Conversion(theirs.key, ours.key, before.key_size, after.key_size)
            self._value = Conversion(theirs.value, ours.value, before.value_size, after.value_size)
        except ValueError as error:
            raise NotMigratedError(str(error)) from error

    def require_room(self) -> None:
        """Raises NotMigratedError if `new` has no room for everything. A full LRU makes room."""
        room = self._new.info.max_entries
        if self._is_shared or self._new.info.type == LRU_HASH or room >= self._old.info.max_entries:
            return
        if self._new.info.type == ARRAY:
            fits = not any(_is_used(values) for _, values in self._elements(room, self._old.info.max_entries))
        else:
            fits = self._old.count() <= room
        if not fits:
            raise NotMigratedError("there is no room for all of it")

    def copy(self) -> None:
        """Write all entries; of an array, the used elements."""
        if self._is_shared:
            return
        is_array = self._new.info.type == ARRAY
        for keys, values in self._elements(0, self._new.info.max_entries) if is_array else self._old.chunks():
            if not is_array or _is_used(values):
                self._new.update_batch(*self._wanted(self._key(keys), self._value(values)))

    def copy_missing(self) -> None:
        """Write the entries that `new` lacks or knows less of, while programs use it."""
        for _ in range(0 if self._is_shared else _PASSES):
            for key, value in self._converted():
                present = self._new.lookup(key)  # nearly all are there, and a refused update costs four times as much
                if present is None:
                    self._add(key, value)
                elif present != value:
                    self._meet(key, value, present)

    def close(self) -> None:
        self._old.close()
        self._new.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wanted(self, keys: bytes, values: bytes) -> tuple[bytes, bytes]:
        """Those of the entries (in the new layout) that are to be copied."""
        return keys, values

    def _add(self, key: bytes, value: bytes) -> None:
        """Write an entry that `new` lacked a moment ago. What its programs have written there since stays."""
        with suppress(FileExistsError):
            self._new.update(key, value, NO_EXIST)

    def _meet(self, key: bytes, value: bytes, present: bytes) -> None:
        """Deal with another value that `new` has at `key`: it is the later one and stays."""

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
            first = U32.unpack_from(keys)[0] if keys else end
            start, stop = max(begin - first, 0), max(end - first, 0)
            yield keys[start * key_size : stop * key_size], values[start * value_size : stop * value_size]


def _is_used(values: bytes) -> bool:
    return values.count(0) < len(values)
