"""What the service tables hold, as the planner thinks of it. datapath/maps/packing.py gives them their bytes.

Everything here is of one address family; each family has its own tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class FrontendKey(NamedTuple):
    """A VIP, port and IP protocol. Port 0 with protocol 0 marks the address as a VIP (FrontendFlags.VIP_ONLY)."""

    address: bytes
    port: int
    protocol: int


class Frontend(NamedTuple):
    """slot_count 0 means reject, or drop with FrontendFlags.DROP."""

    service_id: int
    slot_base: int
    slot_count: int
    flags: int = 0
    affinity_seconds: int = 0


class Backend(NamedTuple):
    address: bytes
    port: int
    state: int
    flags: int
    epoch: int
    service_id: int


class SourceRangeKey(NamedTuple):
    """One admitted prefix of a Service port. `prefix_bits` counts the range's own bits only."""

    service_id: int
    network: bytes
    prefix_bits: int


@dataclass(slots=True)
class TableWrites:
    """Writes that bring the tables of one family to a new state, applied in the order of the fields: an entry
    is written before the entries that point at it, and taken back after them.
    """

    backends: dict[int, Backend] = field(default_factory=dict)
    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)  # base -> backend ids, a fresh range each
    source_ranges: set[SourceRangeKey] = field(default_factory=set)
    frontends: dict[FrontendKey, Frontend] = field(default_factory=dict)
    removed_frontends: set[FrontendKey] = field(default_factory=set)
    removed_source_ranges: set[SourceRangeKey] = field(default_factory=set)
    backend_states: dict[int, tuple[int, int]] = field(default_factory=dict)  # id -> (state, flags), written last

    def __bool__(self) -> bool:
        return bool(
            self.backends
            or self.slots
            or self.source_ranges
            or self.frontends
            or self.removed_frontends
            or self.removed_source_ranges
            or self.backend_states
        )


@dataclass(slots=True)
class TableContents:
    """What one family's tables hold, read back at the start (slots: only the ranges that frontends point at)."""

    frontends: dict[FrontendKey, Frontend] = field(default_factory=dict)
    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)
    backends: dict[int, Backend] = field(default_factory=dict)
    source_ranges: set[SourceRangeKey] = field(default_factory=set)
