"""Maps as the programs see them, with every write checked as it happens."""

from __future__ import annotations

from collections.abc import Iterator

from kproxy_ebpf.contract.layouts import BackendState, FrontendFlags
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, TableContents, TableWrites
from kproxy_ebpf.model.services import (
    Endpoint,
    EndpointSlice,
    Node,
    Protocol,
    Service,
    ServiceName,
    ServicePort,
    SlicePort,
    packed,
)
from kproxy_ebpf.plan.services.plan import PlanSettings, plan_service
from kproxy_ebpf.plan.tables.allocate import QUARANTINE_SECONDS
from kproxy_ebpf.plan.tables.services import Capacities, Tables

NODE = Node("here", zone="near", addresses=(packed("10.0.0.1"), packed("fd00::1")))
CAPACITIES = Capacities(frontends=400, slots=4000, backends=400, source_ranges=100)
TCP, UDP = Protocol.TCP, Protocol.UDP
USABLE, KEEP, LEFT, GONE = BackendState.USABLE, BackendState.KEEP, BackendState.LEFT, BackendState.GONE
A, B, C = "1.1.1.1", "1.1.1.2", "1.1.1.3"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Maps:
    """One family's maps. `perform` applies writes one at a time and checks after each that nothing points at nothing;
    `fail_after` stops with OSError after that many single writes. `in_place`: a range in use may be overwritten, since
    the slots are full; `check` still holds after each write.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.in_place = False
        self.contents = TableContents()
        self.cells: dict[int, int] = {}
        self.released: dict[int, float] = {}  # slot -> when the last frontend left it
        self.rows_written: dict[int, Backend] = {}

    def perform(self, writes: TableWrites, fail_after: int | None = None) -> int:
        """Returns how many single writes there were."""
        count = 0
        for count, _ in enumerate(self._steps(writes), start=1):
            self.check()
            if count == fail_after:
                raise OSError("no memory")
        return count

    def _steps(self, writes: TableWrites) -> Iterator[None]:
        yield from self._pointed_at(writes)
        yield from self._pointing(writes)
        for key in writes.removed_source_ranges:
            self.contents.source_ranges.discard(key)
            yield
        for number, (state, flags) in writes.backend_states.items():
            self.contents.backends[number] = self.contents.backends[number]._replace(state=state, flags=flags)
            yield

    def _pointed_at(self, writes: TableWrites) -> Iterator[None]:
        contents = self.contents
        for number, backend in writes.backends.items():
            assert number > 0
            old = contents.backends.get(number)
            if old is not None and old.state in (BackendState.USABLE, BackendState.KEEP):
                assert old.epoch == backend.epoch, "a live row was given to another backend"
            if old is not None and old[:2] != backend[:2]:
                assert backend.epoch == old.epoch + 1, "an id was reused under its old epoch"
            contents.backends[number] = backend
            yield
        for base, ids in writes.slots.items():
            for offset, number in enumerate(ids):
                self._write_cell(base + offset, number)
                yield
        for key in writes.source_ranges:
            contents.source_ranges.add(key)
            yield

    def _pointing(self, writes: TableWrites) -> Iterator[None]:
        contents = self.contents
        for key, frontend in writes.frontends.items():
            self._leave(contents.frontends.get(key), frontend)
            contents.frontends[key] = frontend
            yield
        for key in writes.removed_frontends:
            self._leave(contents.frontends.pop(key, None), None)
            yield

    def _write_cell(self, cell: int, number: int) -> None:
        if self.cells.get(cell) != number and not self.in_place:
            for frontend in self.contents.frontends.values():
                inside = frontend.slot_base <= cell < frontend.slot_base + frontend.slot_count
                assert not inside, "a range in use was overwritten"
            assert self.clock() - self.released.get(cell, 0.0) >= QUARANTINE_SECONDS, "a range at rest was overwritten"
        self.cells[cell] = number

    def _leave(self, old: Frontend | None, new: Frontend | None) -> None:
        if old is not None and (new is None or (old.slot_base, old.slot_count) != (new.slot_base, new.slot_count)):
            for cell in range(old.slot_base, old.slot_base + old.slot_count):
                self.released[cell] = self.clock()

    def check(self) -> None:
        """Every slot of every frontend is a usable backend of its service."""
        for key, frontend in self.contents.frontends.items():
            for cell in range(frontend.slot_base, frontend.slot_base + frontend.slot_count):
                backend = self.contents.backends[self.cells[cell]]
                assert backend.state == BackendState.USABLE, f"{key} points at {backend}"
                assert backend.service_id == frontend.service_id

    def read_back(self) -> TableContents:
        """What a restarted daemon reads."""
        contents = self.contents
        ranges = {(entry.slot_base, entry.slot_count) for entry in contents.frontends.values() if entry.slot_count}
        slots = {base: tuple(self.cells[base + offset] for offset in range(count)) for base, count in ranges}
        return TableContents(dict(contents.frontends), slots, dict(contents.backends), set(contents.source_ranges))

    def targets(self, key: FrontendKey) -> set[tuple[bytes, int]] | None:
        """Where a new connection may go; None without a frontend."""
        frontend = self.contents.frontends.get(key)
        if frontend is None:
            return None
        cells = range(frontend.slot_base, frontend.slot_base + frontend.slot_count)
        return {self.contents.backends[self.cells[cell]][:2] for cell in cells}

    def row(self, address: str, port: int = 8080) -> tuple[int, Backend]:
        """The newest row of a target."""
        rows = [item for item in self.contents.backends.items() if item[1][:2] == (packed(address), port)]
        return max(rows, key=lambda item: (item[1].state != BackendState.GONE, item[1].epoch))


def tables(clock: Clock, family: int = 4, capacities: Capacities = CAPACITIES) -> Tables:
    return Tables(family, capacities, clock)


def service(name: str = "web", **changes: object) -> Service:
    fields: dict[str, object] = {
        "key": ServiceName("shop", name),
        "cluster_ips": (packed("10.96.0.1"),),
        "ports": (ServicePort("http", TCP, 80),),
        "created": "2026-01-01T00:00:00Z",
    }
    return Service(**(fields | changes))  # type: ignore[arg-type]


def endpoint(address: str, **changes: object) -> Endpoint:
    return Endpoint(packed(address), **changes)  # type: ignore[arg-type]


def slice_of(owner: Service, *endpoints: Endpoint | str, name: str = "web-1", **changes: object) -> EndpointSlice:
    fields: dict[str, object] = {
        "namespace": owner.key.namespace,
        "name": name,
        "service": owner.key,
        "family": 4,
        "ports": (SlicePort("http", TCP, 8080),),
        "endpoints": tuple(endpoint(each) if isinstance(each, str) else each for each in endpoints),
    }
    return EndpointSlice(**(fields | changes))  # type: ignore[arg-type]


def key(address: str, port: int = 80, protocol: int = TCP) -> FrontendKey:
    return FrontendKey(packed(address), port, int(protocol))


def is_drop(frontend: Frontend) -> bool:
    return bool(frontend.flags & FrontendFlags.DROP)


def unready(address: str) -> Endpoint:
    return endpoint(address, ready=False, serving=False)


def draining(address: str) -> Endpoint:
    return endpoint(address, ready=False, terminating=True)


WEB, VIP = service(), key("10.96.0.1")


class World:
    """Tables and the maps they are written to."""

    def __init__(self, capacities: Capacities = CAPACITIES) -> None:
        self.clock = Clock()
        self.capacities = capacities
        self.maps = Maps(self.clock)
        self.tables = Tables(4, capacities, self.clock)

    def set(self, owner: Service, *endpoints: Endpoint | str, maglev: bool = False) -> TableWrites:
        slices = (slice_of(owner, *endpoints),)
        self.tables.replace(owner.key, plan_service(owner, slices, NODE, PlanSettings(maglev)))
        return self.flush()

    def remove(self, owner: Service) -> TableWrites:
        self.tables.replace(owner.key, None)
        return self.flush()

    def flush(self) -> TableWrites:
        writes = self.tables.writes
        self.maps.perform(writes)
        self.tables.commit()
        return writes

    def restart(self) -> None:
        self.tables = Tables(4, self.capacities, self.clock)
        self.tables.adopt(self.maps.read_back())

    def state(self, address: str) -> int:
        return self.maps.row(address)[1].state

    def addresses(self, each: FrontendKey = VIP) -> set[str] | None:
        targets = self.maps.targets(each)
        return None if targets is None else {".".join(map(str, address)) for address, _ in targets}
