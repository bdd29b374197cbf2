"""Who owns what in the maps: the records that Tables keeps of Services, and of entries that a restart found."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from kproxy_ebpf.contract.layouts import BackendState
from kproxy_ebpf.model.service_tables import FrontendKey, SourceRangeKey, TableContents
from kproxy_ebpf.model.services import Protocol

LIVE = (BackendState.USABLE, BackendState.KEEP)
"""The states of a row that is an endpoint of its Service port."""

Range = tuple[int, int]
"""Base and count of slots."""


@dataclass(slots=True)
class PortRecord:
    """What a Service port owns. Some ids in `backends` may belong to others by now: BackendColumns.remembered tells."""

    service_id: int
    backends: Sequence[int] = ()
    ranges: Sequence[Range] = ()
    source_ranges: frozenset[SourceRangeKey] = frozenset()


@dataclass(slots=True)
class ServiceRecord:
    """What a Service owns. `keys` may name a frontend that an older Service has taken over."""

    created: str = ""
    ports: dict[tuple[str, Protocol], PortRecord] = field(default_factory=dict)
    keys: Sequence[FrontendKey] = ()


@dataclass(slots=True)
class Leftover:
    """What a restart found under one service id, until its Service claims it."""

    keys: list[FrontendKey] = field(default_factory=list)
    backends: array[int] = field(default_factory=lambda: array("I"))
    ranges: set[Range] = field(default_factory=set)
    source_ranges: set[SourceRangeKey] = field(default_factory=set)

    def record(self, service_id: int) -> PortRecord:
        return PortRecord(service_id, self.backends, tuple(self.ranges), frozenset(self.source_ranges))


def leftovers(contents: TableContents) -> dict[int, Leftover]:
    """Sort what was found by service id."""
    found: dict[int, Leftover] = {}
    for key, frontend in contents.frontends.items():
        leftover = found.setdefault(frontend.service_id, Leftover())
        leftover.keys.append(key)
        if frontend.slot_count:
            leftover.ranges.add((frontend.slot_base, frontend.slot_count))
    for number, backend in contents.backends.items():
        if backend.state in LIVE:
            found.setdefault(backend.service_id, Leftover()).backends.append(number)
        elif backend.state == BackendState.LEFT and backend.service_id in found:
            found[backend.service_id].backends.append(number)
    for source_range in contents.source_ranges:
        found.setdefault(source_range.service_id, Leftover()).source_ranges.add(source_range)
    return found
