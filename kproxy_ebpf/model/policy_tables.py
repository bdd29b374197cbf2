"""What the tables of network policies hold, as the planner thinks of it.

A packet is judged in three look-ups: its pod has a subject in each direction, the other end's address has a class
(`classes`, else the longest prefix of `blocks`, else ANYBODY), and `grants` has the ports that this subject admits for
this class. Where `grants` has no such pair, the subject's pair with ANYBODY decides; where that is absent too, nothing
is admitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kproxy_ebpf.model.policies import PodName, PortRange, Prefix

ANYBODY = 0
"""The class of every address that no policy in force here tells apart from others."""
UNKNOWN, OPEN, NOTHING = 0, 1, 2
"""Subjects with a meaning of their own: nobody has said yet who the pod is; no policy isolates it, or one admits
everything; it is isolated, and nothing is admitted. UNKNOWN and NOTHING have no grants.
"""
ALL_PORTS = 0
"""The port set that admits everything, other protocols than TCP, UDP and SCTP included."""
ROW_RANGES = 16
MAX_ROWS = 4
"""A port set has at most so many rows of so many ranges."""


class Subjects(NamedTuple):
    """What a local pod's link is told."""

    ingress: int
    egress: int


class GrantKey(NamedTuple):
    subject: int
    class_: int


class PortSetRow(NamedTuple):
    """Up to ROW_RANGES ranges. `next_row` is the number of the row with more of them, 0 for none."""

    ranges: tuple[PortRange, ...]
    next_row: int = 0


@dataclass(slots=True)
class PolicyWrites:
    """Writes of one step, performed in the order of the fields: an entry is written before what points at it, and
    removed after it. So each packet is judged as before the change or as after it.
    """

    port_sets: dict[int, PortSetRow] = field(default_factory=dict)
    grants: dict[GrantKey, int] = field(default_factory=dict)
    classes: dict[bytes, int] = field(default_factory=dict)
    blocks: dict[Prefix, int] = field(default_factory=dict)
    removed_classes: set[bytes] = field(default_factory=set)
    removed_blocks: set[Prefix] = field(default_factory=set)
    subjects: dict[PodName, Subjects] = field(default_factory=dict)
    removed_subjects: set[PodName] = field(default_factory=set)
    removed_grants: set[GrantKey] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)
