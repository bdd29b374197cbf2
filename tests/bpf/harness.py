"""The real programs, run on packets without a device (BPF_PROG_TEST_RUN), and their maps in the tests' words."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable
from ctypes import Structure
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from packets import Endpoint, Host
from scapy.layers.l2 import Ether

from kproxy_ebpf.contract.layouts import (
    BackendState,
    Counter,
    Direction,
    FrontendFlags,
    Settings,
    Switches,
    Verdict,
    layouts,
)
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.linux.bpf import CHECKSUM_COMPLETE, Map, Program, TestRun
from kproxy_ebpf.linux.kernel import kernel_version
from kproxy_ebpf.linux.libbpf import possible_cpus

NEXT, SHOT, REDIRECT = 0xFFFFFFFF, 2, 7  # TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
ANSWERED = {Verdict.REJECTED_NO_BACKEND, Verdict.REJECTED_UNDEFINED_PORT, Verdict.RESET_BACKEND_GONE}
FROM_POD, TO_POD = Direction.FROM_POD, Direction.TO_POD

T = TypeVar("T", bound=Structure)


class Sent(Protocol):
    """A packet, or a part of one."""

    @property
    def sent_back(self) -> bool: ...

    def frame(self, family: int) -> bytes: ...


@dataclass(frozen=True)
class Step:
    """A packet at a hook, the verdict on it, and what it becomes (None: nothing else than it was)."""

    hook: Direction
    packet: Sent
    verdict: Verdict
    becomes: Sent | None = None


@dataclass(frozen=True)
class Meanwhile:
    """What changes in the maps between two packets."""

    happens: Callable[[Datapath], object]


SUM = CHECKSUM_COMPLETE if kernel_version() >= (6, 18) else 0
"""Lets the kernel look whether its sum of the packet stays the packet's, where it can."""


class Datapath:
    """The programs and maps of one family. Endpoints are given for both families and used for this one."""

    def __init__(self, generation: Generation, family: int) -> None:
        self.family = family
        self.layouts = layouts(family)
        self.programs: dict[Direction, Program] = {
            FROM_POD: generation.program("from_pod", family),
            TO_POD: generation.program("to_pod", family),
        }
        self._tail_calls = generation.map("programs", family)  # a prog array is emptied with its last descriptor
        self.frontends, self.slots, self.backends, self.flows, self.fragments, self.affinity, self.source_ranges = (
            generation.map(name, family)
            for name in ("frontends", "slots", "backends", "flows", "fragments", "affinity", "source_ranges")
        )
        self.counters, self.settings = map(generation.map, ("counters", "settings"))
        self._slots_used = 0

    def clear(self) -> None:
        """Back to empty tables, and counters of 0."""
        self.clear_flows()
        for table in (self.fragments, self.frontends, self.source_ranges):
            for key in list(table.keys()):
                table.delete(key)
        for key, value in self.backends.items():
            if any(value):
                self.backends.update(key, bytes(len(value)))
        self.set_live()
        for verdict in Verdict:
            self.counters.update(u32(verdict), bytes(ctypes.sizeof(Counter) * possible_cpus()))
        self._slots_used = 0

    def set_live(self, **fields: Any) -> None:
        """What the programs read while they run; they balance unless `fields` say otherwise."""
        self.settings.update(u32(0), bytes(Settings(**{"switches": Switches.TC} | fields)))

    def clear_flows(self) -> None:
        for table in (self.flows, self.affinity):
            for key in list(table.keys()):
                table.delete(key)

    # Services

    def add_backend(self, number: int, at: Endpoint, **fields: Any) -> int:
        """Write the backend with id `number`; usable, of epoch 1 and service 1 unless `fields` say otherwise."""
        values = {"state": BackendState.USABLE, "epoch": 1, "service_id": 1} | fields
        backend = self.layouts.Backend(address=self._address(at.host), port_be=at.port, **values)
        self.backends.update(u32(number), bytes(backend))
        return number

    def set_backend(self, number: int, **fields: Any) -> None:
        """Change single fields of a backend, such as its state."""
        _edit(self.backends, u32(number), self.layouts.Backend, fields)

    def add_frontend(self, at: Endpoint, backends: Iterable[int] = (), protocol: str = "tcp", **fields: Any) -> None:
        """Write a frontend over `backends` (ids) in a fresh range of slots, and the mark of its address as a VIP."""
        base, ids = self._slots_used, tuple(backends)
        for offset, number in enumerate(ids):
            self.slots.update(u32(base + offset), u32(number))
        self._slots_used += len(ids)
        frontend = self.layouts.Frontend(**{"service_id": 1, "slot_base": base, "slot_count": len(ids)} | fields)
        self.frontends.update(self._frontend_key(at, PROTOCOLS[protocol]), bytes(frontend))
        mark = self.layouts.Frontend(flags=FrontendFlags.VIP_ONLY)
        self.frontends.update(self._frontend_key(at.on(0), 0), bytes(mark))

    def remove_frontend(self, at: Endpoint, protocol: str = "tcp") -> None:
        self.frontends.delete(self._frontend_key(at, PROTOCOLS[protocol]))
        self.frontends.delete(self._frontend_key(at.on(0), 0))

    def admit(self, service_id: int, client: Host, prefix_bits: int) -> None:
        """Write an admitted source range."""
        key = self.layouts.SourceRangeKey(
            prefix_bits=32 + prefix_bits, service_id=service_id, client=self._address(client)
        )
        self.source_ranges.update(bytes(key), u32(1))

    # Flows

    def flow(self, source: Endpoint, destination: Endpoint, hook: Direction, protocol: str = "tcp") -> Any:
        """The flow entry that a packet finds, or None."""
        raw = self.flows.lookup(self._flow_key(source, destination, hook, protocol))
        return None if raw is None else self.layouts.Flow.from_buffer_copy(raw)

    def write_flow(
        self,
        key: tuple[Endpoint, Endpoint, Direction],
        to: tuple[Endpoint, Endpoint, Direction],
        protocol: str = "tcp",
        **fields: Any,
    ) -> None:
        """Write one entry, of a backend that nothing is known of, used just now."""
        values = {"last_seen_seconds": now_seconds(), "created_seconds": now_seconds()} | fields
        flow = self.layouts.Flow(**values)
        flow.to = self.layouts.Tuple.from_buffer_copy(self._flow_key(*to, protocol))
        self.flows.update(self._flow_key(*key, protocol), bytes(flow))

    def lose_flow(self, source: Endpoint, destination: Endpoint, hook: Direction, protocol: str = "tcp") -> None:
        """Remove one entry, as the LRU may."""
        assert self.flows.delete(self._flow_key(source, destination, hook, protocol))

    def age(self, seconds: int) -> None:
        """Make every flow and every affinity older, as if nothing had been sent for `seconds`."""
        _age(self.flows, self.layouts.Flow, "last_seen_seconds", seconds)
        _age(self.affinity, self.layouts.Affinity, "last_used_seconds", seconds)

    def age_fragments(self, seconds: int) -> None:
        """Make every datagram in fragments older."""
        _age(self.fragments, self.layouts.Fragment, "seen_seconds", seconds)

    # Packets

    def run(self, hook: Direction, frame: bytes, flags: int = 0) -> TestRun:
        return self.programs[hook].test_run(frame, flags=flags)

    def count(self) -> dict[Verdict, int]:
        """Packets by verdict, of both families."""
        return {verdict: packets for verdict, (packets, _) in self._counters().items()}

    def count_bytes(self) -> dict[Verdict, int]:
        return {verdict: size for verdict, (_, size) in self._counters().items()}

    def see(self, hook: Direction, frame: bytes, flags: int = 0) -> tuple[Verdict, TestRun]:
        """Run one packet and say which verdict was counted, exactly one."""
        before = self.count()
        result = self.run(hook, frame, flags)
        counted = [verdict for verdict, packets in self.count().items() for _ in range(packets - before[verdict])]
        assert len(counted) == 1, f"counted {counted}"
        return counted[0], result

    def play(self, *story: Step | Meanwhile, has_checksum: bool = True) -> None:
        """Run a story's packets one after the other; compare verdicts, actions and every byte, and the kernel's sum.

        Nobody looks at the sum of UDP without a checksum; of an answer, which is cut, the kernel forgets it.
        """
        for number, step in enumerate(story, start=1):
            if isinstance(step, Meanwhile):
                step.happens(self)
                continue
            verdict, result = self.see(
                step.hook, step.packet.frame(self.family), 0 if step.verdict in ANSWERED or not has_checksum else SUM
            )
            assert verdict.name == step.verdict.name, f"step {number}"
            assert result.retval == _action(step), f"step {number}"
            if result.retval != SHOT:
                assert_same_frame(result.data, (step.becomes or step.packet).frame(self.family), f"step {number}")

    def _counters(self) -> dict[Verdict, tuple[int, int]]:
        """(packets, bytes) by verdict."""
        values = {}
        for verdict in Verdict:
            raw = self.counters.lookup(u32(verdict))
            assert raw is not None
            per_cpu = (Counter * (len(raw) // ctypes.sizeof(Counter))).from_buffer_copy(raw)
            values[verdict] = (sum(cpu.packets for cpu in per_cpu), sum(cpu.bytes for cpu in per_cpu))
        return values

    def _address(self, host: Host) -> Any:
        packed = host.packed(self.family)
        return (ctypes.c_uint8 * len(packed))(*packed)

    def _frontend_key(self, at: Endpoint, protocol: int) -> bytes:
        return bytes(self.layouts.FrontendKey(address=self._address(at.host), port_be=at.port, protocol=protocol))

    def _flow_key(self, source: Endpoint, destination: Endpoint, hook: Direction, protocol: str) -> bytes:
        return bytes(
            self.layouts.Tuple(
                source=self._address(source.host),
                destination=self._address(destination.host),
                source_port_be=source.port,
                destination_port_be=destination.port,
                protocol=PROTOCOLS[protocol],
                direction=hook,
            )
        )


def assert_same_frame(actual: bytes, expected: bytes, about: str) -> None:
    if actual != expected:
        assert Ether(actual).show(dump=True) == Ether(expected).show(dump=True), about
        assert actual.hex() == expected.hex(), about


def now_seconds() -> int:
    """The programs' clock."""
    return int(time.clock_gettime(time.CLOCK_MONOTONIC))


def _age(table: Map, layout: type[Structure], field: str, seconds: int) -> None:
    for key, value in list(table.items()):
        entry = layout.from_buffer_copy(value)
        setattr(entry, field, (getattr(entry, field) - seconds) % 2**32)
        table.update(key, bytes(entry))


def _action(step: Step) -> int:
    if step.verdict.name.startswith("DROPPED"):
        return SHOT
    return REDIRECT if step.becomes and step.becomes.sent_back else NEXT


def u32(number: int) -> bytes:
    return bytes(ctypes.c_uint32(number))


def _edit(table: Map, key: bytes, layout: type[T], fields: dict[str, Any]) -> None:
    raw = table.lookup(key)
    assert raw is not None
    entry = layout.from_buffer_copy(raw)
    for name, value in fields.items():
        setattr(entry, name, value)
    table.update(key, bytes(entry))
