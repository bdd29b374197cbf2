"""Where the balanced sets of one Service port lie in the slots.

A set that changes gets a fresh range, so that the programs see the old set or the new one, never a mixture. Where the
slots have no room for that, it is written over the range that the port has: each slot then holds a member of the old
set or of the new one, and a set can always shrink. A Maglev table is many times as long as its set, so tables may take
MAGLEV_SHARE of the slots at most, and a set whose table finds no room is balanced at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.plan.services.endpoints import Target
from kproxy_ebpf.plan.services.maglev import lookup_table, table_size
from kproxy_ebpf.plan.tables.columns import SlotColumn
from kproxy_ebpf.plan.tables.records import Range
from kproxy_ebpf.plan.tables.staged_writes import Reservation

MAGLEV_SHARE = 0.75

Targets = tuple[Target, ...]


class BalancedSet(NamedTuple):
    """Backend ids, in the order of the targets, and whether a Maglev table of them is wanted."""

    ids: Sequence[int]
    maglev: bool


class Placement:
    """Takes ranges from `reservation` for a port whose sets lie in the `old` ranges. Raises MapFullError.

    `ranges`: where each set lies; `new_slots`: what is to be written, by base; `released`: what is no longer in use;
    `at_random`: the sets that get no Maglev table although one is wanted.
    """

    def __init__(
        self, slots: SlotColumn, old: Sequence[Range], reservation: Reservation, sets: Mapping[Targets, BalancedSet]
    ) -> None:
        self.ranges: dict[Targets, Range] = {}
        self.new_slots: dict[int, list[int]] = {}
        self.at_random: set[Targets] = set()
        self._slots, self._reservation = slots, reservation
        self._unused = list(old)
        self._are_all_one = len(old) == 1
        self._tails: list[Range] = []
        changed = [
            (targets, wanted)
            for targets, wanted in sets.items()
            if not self._keep(targets, wanted.ids, table_size(len(wanted.ids)) if wanted.maglev else len(wanted.ids))
        ]
        for targets, wanted in changed:
            if not (wanted.maglev and self._place_table(targets, wanted.ids)):
                self._place_plain(targets, wanted.ids)
        self.released = [*self._unused, *self._tails]

    def _keep(self, targets: Targets, ids: Sequence[int], length: int) -> bool:
        """True if an old range holds this very set already."""
        for range_ in self._unused:
            if range_[1] == length and set(self._slots.read(*range_)) == set(ids):
                self._unused.remove(range_)
                self.ranges[targets] = range_
                return True
        return False

    def _place_table(self, targets: Targets, ids: Sequence[int]) -> bool:
        length = table_size(len(ids))
        try:
            range_ = self._range(ids, length, MAGLEV_SHARE)
        except MapFullError:
            self.at_random.add(targets)
            return False
        self.ranges[targets] = range_
        self.new_slots[range_[0]] = [ids[index] for index in lookup_table(targets)]
        return True

    def _place_plain(self, targets: Targets, ids: Sequence[int]) -> None:
        if targets in self.at_random and self._keep(targets, ids, len(ids)):
            return
        self.ranges[targets] = range_ = self._range(ids, len(ids), 1.0)
        self.new_slots[range_[0]] = list(ids)

    def _range(self, ids: Sequence[int], length: int, share: float) -> Range:
        """A fresh range, or the beginning of an old one where there is none."""
        try:
            return self._reservation.range(length, share), length
        except MapFullError:
            fitting = [range_ for range_ in self._unused if range_[1] >= length and self._may_overwrite(range_, ids)]
            if not fitting:
                raise
            base, count = old = min(fitting, key=lambda range_: range_[1])
            self._unused.remove(old)
            if count > length:
                self._tails.append((base + length, count - length))
            return base, length

    def _may_overwrite(self, range_: Range, ids: Sequence[int]) -> bool:
        """A frontend sees what is written over its range before it is led elsewhere: only members that it had, unless
        all frontends of the port had one set.
        """
        return self._are_all_one or set(ids) <= set(self._slots.read(*range_))
