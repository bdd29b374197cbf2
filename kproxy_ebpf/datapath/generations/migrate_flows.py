"""Migrates flows from one generation to the next, and decides which of two entries at one key counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from kproxy_ebpf.contract.layouts import FlowState, layouts
from kproxy_ebpf.datapath.generations.migrate_table import TableMigration


class FlowMigration(TableMigration):
    """Migrates a flow table. Flows that are over are not copied: a late copy would stand in the place of a new
    connection with the same ports, or beside it, and its mirror entry would be taken for the new connection's.

    The two entries of a connection are copied together or not at all. If another connection stands at the key of one of
    them, the later connection counts: the programs gave it the place because the earlier one was over. Of two that were
    made within the same second, the one in use counts.
    """

    def __init__(self, old: Path, new: Path, name: str, family: int) -> None:
        super().__init__(old, new, name, family)
        self._layout = layouts(family).Flow

    def _wanted(self, keys: bytes, values: bytes) -> tuple[bytes, bytes]:
        states = values[self._layout.state.offset :: self._new.info.value_size]
        if FlowState.CLOSED not in states:
            return keys, values
        lives = [state != FlowState.CLOSED for state in states]
        return _selected(keys, self._new.info.key_size, lives), _selected(values, self._new.info.value_size, lives)

    def _add(self, key: bytes, value: bytes) -> None:
        flow = self._entry(key, value)
        if not flow.is_over and self._has_place_for_mirror(flow):
            super()._add(key, value)

    def _meet(self, key: bytes, value: bytes, present: bytes) -> None:
        flow, other = self._entry(key, value), self._entry(key, present)
        if flow.is_one_with(other):
            if _knows_more(flow, other):
                self._new.update(key, value)
        elif not flow.is_over and flow.is_later_than(other) and self._has_place_for_mirror(flow):
            self._new.update(key, value)
            self._forget_mirror(other)

    def _has_place_for_mirror(self, flow: _Entry) -> bool:
        """True if the mirror entry of `flow` has a place in `new`. Without one, the connection is over."""
        present = self._new.lookup(flow.mirror_key)
        if present is None:
            return True
        other = self._entry(flow.mirror_key, present)
        return other.is_one_with(flow) or flow.is_later_than(other)

    def _forget_mirror(self, flow: _Entry) -> None:
        """Remove the mirror entry of `flow`, which has lost its place: left alone, it would count as open for days."""
        present = self._new.lookup(flow.mirror_key)
        if present is not None and self._entry(flow.mirror_key, present).is_one_with(flow):
            self._new.delete(flow.mirror_key)

    def _entry(self, key: bytes, value: bytes) -> _Entry:
        return _Entry(key, self._layout.from_buffer_copy(value))


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a flow table; `flow` is a Layouts.Flow."""

    key: bytes
    flow: Any

    @property
    def mirror_key(self) -> bytes:
        """The key of the connection's other entry; see struct flow."""
        to = self.flow.to
        ends = {"source": to.destination, "destination": to.source}
        ports = {"source_port_be": to.destination_port_be, "destination_port_be": to.source_port_be}
        return bytes(type(to)(**ends, **ports, protocol=to.protocol, direction=to.direction))

    @property
    def is_over(self) -> bool:
        return bool(self.flow.state == FlowState.CLOSED)

    def is_one_with(self, other: _Entry) -> bool:
        """True if both belong to one connection: they are the same entry, or each other's mirror."""
        same_ends = {self.key, self.mirror_key} == {other.key, other.mirror_key}
        return same_ends and bool(self.flow.created_seconds == other.flow.created_seconds)

    def is_later_than(self, other: _Entry) -> bool:
        return bool(self.flow.created_seconds > other.flow.created_seconds)


def _knows_more(flow: _Entry, other: _Entry) -> bool:
    """True if `flow` has gone on since it was copied to `other`, by a handshake or a FIN.

    An end that is older than the last packet of `other` does not count: that packet was a SYN that used the same ports
    again, and went on with an entry that did not look closed.
    """
    if flow.is_over and flow.flow.last_seen_seconds < other.flow.last_seen_seconds:
        return False
    return bool(flow.flow.state > other.flow.state)


def _selected(elements: bytes, size: int, selectors: Iterable[bool]) -> bytes:
    """The elements of `size` bytes whose selector is true."""
    parts = (elements[at : at + size] for at in range(0, len(elements), size))
    return b"".join(compress(parts, selectors))
