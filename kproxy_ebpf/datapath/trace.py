"""Traces a packet: the pinned programs run on it with BPF_PROG_TEST_RUN, and nothing is sent.

The programs write to the maps as for any first packet, so every run is undone: the flow that it made is removed, and an
affinity entry is restored. These effects remain: one packet in the counter of the verdict (a per-CPU counter can't be
decremented while other CPUs count), one event where `monitor` listens (its link is lo), and, if the flow table was
full, the loss of the two entries that were used longest ago. A run that is killed half-way leaves a flow without
packets, which expires within two minutes.

The verdict is derived from the packet's own results (the program's return value, the frame, the flow), so it is right
while other CPUs count other packets.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Self

from kproxy_ebpf.contract.layouts import Affinity, Direction, FlowFlags, FrontendFlags, Pod, Verdict
from kproxy_ebpf.contract.scalars import U32
from kproxy_ebpf.datapath.flows.records import flow_record
from kproxy_ebpf.datapath.frames import Refusal, first_packet, refusal_of, tuple_of
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.arrays import Slots
from kproxy_ebpf.datapath.maps.counters import Counters
from kproxy_ebpf.datapath.maps.packing import codec, flow_key, now_seconds, unpack_frontend_values
from kproxy_ebpf.datapath.maps.pod_links import PodLinkTable
from kproxy_ebpf.errors import BusyError, UsageError
from kproxy_ebpf.linux.bpf import TestRun
from kproxy_ebpf.model.flows import FlowRecord, FlowTuple
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, SourceRangeKey

_NEXT = 0xFFFFFFFF  # TC_ACT_UNSPEC
_SHOT, _REDIRECT = 2, 7
_FROM_LINK = struct.Struct("=40xI148x")  # struct __sk_buff with its ifindex
_QUIET_PORTS = range(61000, 65536)  # above what Linux gives to clients on its own
_PORT_ATTEMPTS = 64
_RUN_ATTEMPTS = 5
_UNSEEN_REASONS = (Verdict.DROPPED_FLOW_TABLE_FULL, Verdict.DROPPED_NO_SOURCE_PORT, Verdict.DROPPED_INTERNAL)


@dataclass(frozen=True, slots=True)
class Trace:
    """What became of `packet`.

    `frontend` is the entry for its destination, or the mark of its address as a VIP where the port is not defined;
    `choices` are the backends that it leads to, `backend` the one that was chosen. `becomes` is the tuple after
    translation, `answer` what the pod would get back at once. `handed_to` is the ifindex of the pod's link to which the
    packet would be redirected; `leaves` is True if it would be redirected to the next hop, on its way to another node.
    """

    packet: FlowTuple
    verdict: Verdict
    frontend: Frontend | None = None
    choices: tuple[Backend, ...] = ()
    backend_id: int = 0
    backend: Backend | None = None
    becomes: FlowTuple | None = None
    hairpin: bool = False
    was_affine: bool = False
    handed_to: int = 0
    leaves: bool = False
    answer: Refusal | None = None

    @property
    def is_vip_only(self) -> bool:
        return self.frontend is not None and bool(self.frontend.flags & FrontendFlags.VIP_ONLY)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the maps hold for a packet before the run. `backends`: by id, those that may be chosen, which are `choices`
    and the affine one.
    """

    frontend: Frontend | None
    choices: frozenset[int]
    backends: dict[int, Backend]
    affinity: Affinity | None


class Tracer:
    """Runs packets of one address family; as a context manager. Raises OSError where pins can't be opened."""

    def __init__(self, generation: Generation, family: int) -> None:
        self.family = family
        self._codec = codec(family)
        with ExitStack() as stack:
            opened = stack.enter_context
            self._program = opened(generation.program("from_pod", family))
            self._flows = opened(generation.map("flows", family))
            self._affinity = opened(generation.map("affinity", family))
            self._frontends = opened(generation.map("frontends", family))
            self._backends = opened(generation.map("backends", family))
            self._source_ranges = opened(generation.map("source_ranges", family))
            self._pods = opened(generation.map("pods", family))
            self._links = opened(PodLinkTable(generation, family))
            self._slots = Slots(opened(generation.map("slots", family)))
            self._counters = Counters(generation)
            stack.callback(self._counters.close)
            self._stack = stack.pop_all()

    def trace(self, packet: FlowTuple) -> Trace:
        """Run the first packet of a connection. Source port 0: one that no flow uses.

        Raises UsageError where a flow has the source port that is given, BusyError where none is free or the tables
        change all the time.
        """
        for _ in range(_RUN_ATTEMPTS):
            known = self._known(packet)
            traced = self._undone_run(self._with_unused_port(packet, known), known)
            if self._frontend(packet) == known.frontend:
                return traced
        raise BusyError("the tables changed under each of the runs: try again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _known(self, packet: FlowTuple) -> _Known:
        frontend = self._frontend(packet)
        affinity = self._affine(packet, frontend)
        choices = self._choices(frontend)
        ids = choices | {affinity.backend_id} if affinity else choices
        return _Known(frontend, choices, {number: self._backend(number) for number in sorted(ids)}, affinity)

    def _frontend(self, packet: FlowTuple) -> Frontend | None:
        for port, protocol in ((packet.destination_port, packet.protocol), (0, 0)):
            key = FrontendKey(packet.destination, port, protocol)
            value = self._frontends.lookup(self._codec.pack_frontend_keys((key,)))
            if value is not None:
                return next(unpack_frontend_values(value))
        return None

    def _choices(self, frontend: Frontend | None) -> frozenset[int]:
        if frontend is None or not frontend.slot_count:
            return frozenset()
        ranges = self._slots.read([(frontend.slot_base, frontend.slot_count)])
        return frozenset(ranges.get(frontend.slot_base, ()))

    def _backend(self, number: int) -> Backend:
        return self._codec.unpack_backend(self._backends.lookup(U32.pack(number)) or bytes(self._codec.backend.size))

    def _affinity_key(self, packet: FlowTuple, frontend: Frontend) -> bytes:
        return packet.source + U32.pack(frontend.service_id)

    def _affine(self, packet: FlowTuple, frontend: Frontend | None) -> Affinity | None:
        if frontend is None or not frontend.affinity_seconds:
            return None
        value = self._affinity.lookup(self._affinity_key(packet, frontend))
        return Affinity.from_buffer_copy(value) if value else None

    def _with_unused_port(self, packet: FlowTuple, known: _Known) -> FlowTuple:
        """The packet with a source port such that neither its tuple nor its reply's, from any backend, is a flow's."""
        if packet.source_port:
            if self._is_in_use(packet, known):
                raise UsageError(
                    f"source port {packet.source_port} belongs to a connection of this pod: leave it out, "
                    "and a free one is taken"
                )
            return packet
        for port in random.sample(_QUIET_PORTS, _PORT_ATTEMPTS):
            candidate = replace(packet, source_port=port)
            if not self._is_in_use(candidate, known):
                return candidate
        raise BusyError("no source port without a connection was found: name one behind the source's address")

    def _is_in_use(self, packet: FlowTuple, known: _Known) -> bool:
        return any(self._flow(each) for each in (packet, *replies(packet, known.backends.values())))

    def _undone_run(self, packet: FlowTuple, known: _Known) -> Trace:
        before = self._counters.read()
        try:
            run = self._run(packet)
            flow = self._flow(packet)
        finally:
            self._undo_flow(packet, known)
            self._undo_affinity(packet, known)
        verdict = self._verdict(packet, run, flow, known.frontend)
        if verdict is None:
            after = self._counters.read()
            verdict = max(_UNSEEN_REASONS, key=lambda each: after[each][0] - before[each][0])
        return self._told(packet, verdict, run, flow, known)

    def _run(self, packet: FlowTuple) -> TestRun:
        """Run the program as if the packet came over the link of its source, if that link is known here."""
        ifindex = self._link_of(packet.source)
        if facts := self._links.links().get(ifindex):
            with suppress(OSError):  # the link is gone, or in another namespace
                return self._program.test_run(first_packet(packet, facts.router_mac), _FROM_LINK.pack(ifindex))
        return self._program.test_run(first_packet(packet))

    def _link_of(self, address: bytes) -> int:
        """The link of a pod's address; 0 where that is not known."""
        value = self._pods.lookup(address)
        return Pod.from_buffer_copy(value).ifindex if value else 0

    def _flow(self, packet: FlowTuple) -> FlowRecord | None:
        key = flow_key(self.family, packet)
        value = self._flows.lookup(key)
        return flow_record(self.family, key, value, now_seconds()) if value else None

    def _undo_flow(self, packet: FlowTuple, known: _Known) -> None:
        """Remove both entries; of a flow that was made by half, the reply's. Entries of other connections stay."""
        flow = self._flow(packet)
        peers = [flow.to.reversed()] if flow else replies(packet, known.backends.values())
        for peer in peers:
            entry = self._flow(peer)
            if entry is not None and entry.to == packet.reversed():
                self._flows.delete(flow_key(self.family, peer))
        if flow is not None:
            self._flows.delete(flow_key(self.family, packet))

    def _undo_affinity(self, packet: FlowTuple, known: _Known) -> None:
        frontend = known.frontend
        if frontend is None or not frontend.affinity_seconds:
            return
        key = self._affinity_key(packet, frontend)
        if known.affinity is None:
            self._affinity.delete(key)
        else:
            self._affinity.update(key, bytes(known.affinity))

    def _verdict(
        self, packet: FlowTuple, run: TestRun, flow: FlowRecord | None, frontend: Frontend | None
    ) -> Verdict | None:
        """By the steps of begin_flow in path/pod_path.h; None for a drop that only its counter names."""
        if flow is not None:
            return Verdict.DROPPED_INTERNAL if run.retval == _SHOT else Verdict.BALANCED
        if frontend is None or run.retval == _NEXT:
            return Verdict.UNTOUCHED
        if frontend.flags & FrontendFlags.VIP_ONLY:
            return Verdict.REJECTED_UNDEFINED_PORT
        if frontend.flags & FrontendFlags.SOURCE_RANGES and not self._is_admitted(packet, frontend):
            return Verdict.DROPPED_SOURCE_RANGE
        if not frontend.slot_count:
            drops = frontend.flags & FrontendFlags.DROP
            return Verdict.DROPPED_TRAFFIC_POLICY if drops else Verdict.REJECTED_NO_BACKEND
        return None

    def _is_admitted(self, packet: FlowTuple, frontend: Frontend) -> bool:
        key = SourceRangeKey(frontend.service_id, packet.source, 8 * len(packet.source))
        return self._source_ranges.lookup(self._codec.pack_source_ranges((key,))) is not None

    def _told(self, packet: FlowTuple, verdict: Verdict, run: TestRun, flow: FlowRecord | None, known: _Known) -> Trace:
        choices = tuple(known.backends[number] for number in sorted(known.choices))
        trace = Trace(packet, verdict, known.frontend, choices)
        if run.retval == _SHOT:
            return trace
        if known.frontend is None:
            return self._forwarded(trace, packet, run)
        if flow is None:
            return replace(trace, answer=refusal_of(run.data, self.family))
        becomes, hairpin = tuple_of(run.data, self.family), bool(flow.flags & FlowFlags.HAIRPIN)
        return replace(
            trace if hairpin else self._forwarded(trace, becomes, run),
            backend_id=flow.backend_id,
            backend=known.backends.get(flow.backend_id) or self._backend(flow.backend_id),
            becomes=becomes,
            hairpin=hairpin,
            was_affine=known.affinity is not None and known.affinity.backend_id == flow.backend_id,
        )

    def _forwarded(self, trace: Trace, becomes: FlowTuple, run: TestRun) -> Trace:
        """Say where the packet is redirected to, if it bypasses the host's stack."""
        link, is_handed = self._link_of(becomes.destination), run.retval == _REDIRECT
        return replace(trace, handed_to=link if is_handed else 0, leaves=is_handed and not link)


def replies(packet: FlowTuple, backends: Iterable[Backend]) -> Iterator[FlowTuple]:
    """The tuples of the replies to `packet`, from each backend; if the pod reaches itself, they come from the pod."""
    for backend in backends:
        from_backend = FlowTuple(
            backend.address, backend.port, packet.source, packet.source_port, packet.protocol, Direction.TO_POD
        )
        is_itself = backend.address == packet.source
        yield (
            replace(from_backend, destination=packet.destination, direction=Direction.FROM_POD)
            if is_itself
            else from_backend
        )
