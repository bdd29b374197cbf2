"""What one family's tables hold, kept in few bytes: columns instead of an object for each endpoint and slot."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from kproxy_ebpf.contract.layouts import BackendState
from kproxy_ebpf.model.service_tables import Backend
from kproxy_ebpf.plan.services.endpoints import Target

EPOCH_LIMIT = 1 << 32
GROWTH = 1024
"""Rows that the columns grow ahead of need."""


class BackendColumns:
    """The rows of the table `backends`, by id: a column for each field."""

    def __init__(self, address_bytes: int) -> None:
        self._width = address_bytes
        self._addresses = bytearray()
        self._ports = array("H")
        self._states = bytearray()
        self._flags = bytearray()
        self._epochs = array("I")
        self._services = array("I")

    def __getitem__(self, number: int) -> Backend:
        return Backend(*self.target(number), *self.condition(number), self._epochs[number], self._services[number])

    def __setitem__(self, number: int, backend: Backend) -> None:
        self._grow(number + 1)
        self._addresses[number * self._width : (number + 1) * self._width] = backend.address
        self._ports[number] = backend.port
        self._epochs[number] = backend.epoch
        self._services[number] = backend.service_id
        self.set_condition(number, backend.state, backend.flags)

    def target(self, number: int) -> Target:
        start = number * self._width
        return bytes(self._addresses[start : start + self._width]), self._ports[number]

    def condition(self, number: int) -> tuple[int, int]:
        """State and flags."""
        return self._states[number], self._flags[number]

    def set_condition(self, number: int, state: int, flags: int) -> None:
        self._states[number] = state
        self._flags[number] = flags

    def next_epoch(self, number: int) -> int:
        """The epoch for the id's next owner."""
        return (self._epochs[number] + 1) % EPOCH_LIMIT if number < len(self._epochs) else 1

    def remembered(self, numbers: Iterable[int], service_id: int) -> dict[Target, int]:
        """Which of `numbers` are still rows of this Service port, and not GONE, by their target."""
        services, states = self._services, self._states
        return {
            self.target(number): number
            for number in numbers
            if services[number] == service_id and states[number] != BackendState.GONE
        }

    def _grow(self, count: int) -> None:
        if count > len(self._ports):
            missing = count + GROWTH - len(self._ports)
            self._addresses.extend(bytes(missing * self._width))
            self._states.extend(bytes(missing))
            self._flags.extend(bytes(missing))
            for column in (self._ports, self._epochs, self._services):
                column.frombytes(bytes(missing * column.itemsize))


class SlotColumn:
    """The table `slots`: backend ids by position."""

    def __init__(self) -> None:
        self._ids = array("I")

    def read(self, base: int, count: int) -> array[int]:
        return self._ids[base : base + count]

    def write(self, base: int, ids: Sequence[int]) -> None:
        missing = base + len(ids) - len(self._ids)
        if missing > 0:
            self._ids.frombytes(bytes((missing + GROWTH) * self._ids.itemsize))
        self._ids[base : base + len(ids)] = array("I", ids)
