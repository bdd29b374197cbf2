"""A flow, as the commands and the sweep see it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kproxy_ebpf.contract.layouts import Direction, FlowFlags, FlowState


@dataclass(frozen=True, slots=True)
class FlowTuple:
    """Addresses are packed, ports plain. `direction`: the hook that looks it up, the pods' own packets by default."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    protocol: int
    direction: Direction = Direction.FROM_POD

    def reversed(self) -> FlowTuple:
        """The opposite way, at the same hook."""
        return FlowTuple(
            self.destination, self.destination_port, self.source, self.source_port, self.protocol, self.direction
        )


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """One entry: packets that match `tuple` become `to`. Each connection has two, of which one has FlowFlags.REPLY.

    `idle_seconds` and `age_seconds` count from now; the programs write the last use at most once a second.
    """

    family: int
    tuple: FlowTuple
    to: FlowTuple
    state: FlowState
    flags: FlowFlags
    backend_id: int
    epoch: int
    service_id: int
    idle_seconds: int
    age_seconds: int
    ifindex: int


def mirror_of(flow: FlowRecord) -> FlowRecord:
    """The connection's other entry, for packets of the opposite way."""
    key = replace(flow.to.reversed(), direction=flow.to.direction)
    to = replace(flow.tuple.reversed(), direction=flow.tuple.direction)
    return replace(flow, tuple=key, to=to, flags=flow.flags ^ FlowFlags.REPLY)
