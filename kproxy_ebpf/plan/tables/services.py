"""A copy of what one family's maps hold, and the smallest ordered writes that bring the maps to a plan.

Fresh slots are written first, then the frontends that point at them, each in one write. Entries that nothing points at
any longer are taken back last, and rest before they are used again.

`replace` stages writes, `writes` has those that are staged, `commit` says that they are in the maps. A failed write
needs no undoing: what is staged stays staged, every write may be repeated, and nothing is reused before a commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from kproxy_ebpf.contract.layouts import FrontendFlags
from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.service_tables import Frontend, FrontendKey, TableContents, TableWrites
from kproxy_ebpf.model.services import ServiceName
from kproxy_ebpf.plan.services.claims import Claims, Conflict, seniority
from kproxy_ebpf.plan.services.plan import PortPlan, ServicePlan
from kproxy_ebpf.plan.tables.allocate import Clock
from kproxy_ebpf.plan.tables.ports import PortChange, Ports
from kproxy_ebpf.plan.tables.records import Leftover, ServiceRecord, leftovers
from kproxy_ebpf.plan.tables.staged_writes import StagedWrites


@dataclass(frozen=True, slots=True)
class Capacities:
    """max_entries of each table of one family."""

    frontends: int
    slots: int
    backends: int
    source_ranges: int


class Tables:
    """One family's tables."""

    def __init__(self, family: int, capacities: Capacities, clock: Clock) -> None:
        self.family = family
        self.capacities = capacities
        self._staged = StagedWrites()
        self._ports = Ports(family, capacities.backends, capacities.slots, clock, self._staged)
        self._frontends: dict[FrontendKey, Frontend] = {}
        self._dropping: set[FrontendKey] = set()
        self._records: dict[ServiceName, ServiceRecord] = {}
        self._owners: dict[int, ServiceName] = {}  # by service id
        self._unclaimed: dict[int, Leftover] = {}
        self._claims = Claims()
        self._at_random: set[ServiceName] = set()
        self._names: dict[int, str] | None = None

    @property
    def writes(self) -> TableWrites:
        """What is staged."""
        return self._staged.writes

    def commit(self) -> None:
        """All of `writes` is in the maps."""
        self._ports.commit()

    def take_disturbed(self) -> set[ServiceName]:
        """Services that lost or may win a frontend through another one's change: they are to be planned again."""
        return self._claims.take_disturbed()

    def conflicts(self) -> list[Conflict]:
        """Every frontend that a Service wants and an older one has."""
        waiting = ((key, self._holder(key), loser) for key, loser in self._claims.waiting())
        return [Conflict(self.family, key, holder, loser) for key, holder, loser in waiting if holder is not None]

    def occupancy(self) -> dict[str, tuple[int, int]]:
        """Entries in use and capacity, by table."""
        used = {
            "frontends": len(self._frontends),
            "slots": self._ports.ranges.used(),
            "backends": self._ports.backend_ids.used(),
            "source_ranges": self._ports.source_range_count,
        }
        return {f"{table}_v{self.family}": (count, getattr(self.capacities, table)) for table, count in used.items()}

    def without_local_endpoints(self) -> int:
        """How many frontends drop, because only endpoints of other nodes are left and the traffic policy is Local."""
        return len(self._dropping)

    @property
    def at_random(self) -> Set[ServiceName]:
        """Services that are balanced at random because the slots have no room for their Maglev tables."""
        return self._at_random

    def service_names(self) -> dict[int, str]:
        """namespace/name:port by service id, as people read it (the port's name may be empty).

        The same object as long as no name has changed, so that to ask and to compare costs nothing.
        """
        if self._names is None:
            self._names = {
                port.service_id: f"{name}:{port_name}".rstrip(":")
                for name, record in self._records.items()
                for (port_name, _), port in record.ports.items()
            }
        return self._names

    def adopt(self, contents: TableContents) -> None:
        """Start from what an earlier daemon left in the maps. Services claim it as they are planned."""
        self._frontends = dict(contents.frontends)
        self._dropping = {key for key, found in self._frontends.items() if found.flags & FrontendFlags.DROP}
        self._unclaimed = leftovers(contents)
        self._ports.adopt(contents, self._unclaimed)

    def remove_unclaimed(self) -> None:
        """Stage the removal of what was adopted and no Service has claimed. To be called after the first full sync."""
        unclaimed, self._unclaimed = self._unclaimed, {}
        for service_id, leftover in unclaimed.items():
            frontends = ((key, self._frontends.get(key)) for key in leftover.keys)
            self._remove_frontends(key for key, found in frontends if found and found.service_id == service_id)
            self._ports.remove(leftover.record(service_id))

    def replace(self, name: ServiceName, plan: ServicePlan | None) -> None:
        """Stage what brings the Service to `plan`; None, or a plan without ports of this family, removes it.

        Raises MapFullError with nothing staged; what the Service has in the maps stays.
        """
        ports = plan.ports.get(self.family, ()) if plan is not None else ()
        if not ports and name not in self._records:
            return
        record = self._records.setdefault(name, ServiceRecord())
        if {port.key for port in ports} != record.ports.keys():
            self._names = None
        if plan is not None and plan.created != record.created:
            record.created = plan.created
            self._claims.given_up(record.keys)
        if self._unclaimed:
            self._recognise(name, record, ports)
        lost = self._lost(name, record.created, ports)
        reservation = self._ports.reserve()
        try:
            changes = [self._ports.prepare(record.ports.get(port.key), port, lost, reservation) for port in ports]
            self._check_room(changes, lost)
        except MapFullError:
            reservation.undo()
            raise
        self._stage_service(name, record, changes, lost)

    def _recognise(self, name: ServiceName, record: ServiceRecord, ports: Iterable[PortPlan]) -> None:
        """Claim what was adopted: a port is the one that any of its frontends belongs to in the maps."""
        for port in ports:
            if port.key in record.ports:
                continue
            for planned in port.frontends:
                found = self._frontends.get(planned.key)
                if found is None or planned.flags & FrontendFlags.VIP_ONLY:
                    continue
                leftover = self._unclaimed.pop(found.service_id, None)
                if leftover is not None:
                    record.ports[port.key] = leftover.record(found.service_id)
                    record.keys = (*record.keys, *leftover.keys)
                    self._owners[found.service_id] = name
                    break

    def _lost(self, name: ServiceName, created: str, ports: Iterable[PortPlan]) -> set[FrontendKey]:
        """The frontends that an older Service has. Those that a younger one has are taken from it."""
        lost: set[FrontendKey] = set()
        for port in ports:
            for planned in port.frontends:
                holder = self._holder(planned.key)
                if holder is None or holder == name:
                    continue
                if seniority(self._records[holder].created, holder) < seniority(created, name):
                    lost.add(planned.key)
                else:
                    self._claims.disturb(holder)
        self._claims.wait(name, lost)
        return lost

    def _holder(self, key: FrontendKey) -> ServiceName | None:
        frontend = self._frontends.get(key)
        return self._owners.get(frontend.service_id) if frontend is not None else None

    def _check_room(self, changes: list[PortChange], lost: set[FrontendKey]) -> None:
        """Removals come after additions, so what is staged to be removed still takes room. Raises MapFullError."""
        keys = [planned.key for change in changes for planned in change.port.frontends if planned.key not in lost]
        added = sum(key not in self._frontends for key in keys)
        if added and len(self._frontends) + len(self.writes.removed_frontends) + added > self.capacities.frontends:
            raise MapFullError(f"frontends_v{self.family}", self.capacities.frontends)
        added = sum(len(change.new_source_ranges()) for change in changes)
        used = self._ports.source_range_count + len(self.writes.removed_source_ranges)
        if added and used + added > self.capacities.source_ranges:
            raise MapFullError(f"source_ranges_v{self.family}", self.capacities.source_ranges)

    def _stage_service(
        self, name: ServiceName, record: ServiceRecord, changes: list[PortChange], lost: set[FrontendKey]
    ) -> None:
        self._at_random.discard(name)
        if any(change.placement.at_random for change in changes):
            self._at_random.add(name)
        gone, record.ports = record.ports, {}
        keys = []
        for change in changes:
            gone.pop(change.port.key, None)
            self._owners[change.service_id] = name
            record.ports[change.port.key] = self._ports.stage(change)
            for planned in change.port.frontends:
                if planned.key not in lost:
                    keys.append(planned.key)
                    self._set_frontend(planned.key, change.frontend(planned))
        self._remove_frontends(key for key in {*record.keys} - {*keys} if self._holder(key) == name)
        for port_record in gone.values():
            self._ports.remove(port_record)
            del self._owners[port_record.service_id]
        record.keys = tuple(keys)
        if not record.ports:
            del self._records[name]

    def _set_frontend(self, key: FrontendKey, frontend: Frontend) -> None:
        if self._frontends.get(key) != frontend:
            self._frontends[key] = frontend
            self._dropping.discard(key)
            if frontend.flags & FrontendFlags.DROP:
                self._dropping.add(key)
            self._staged.frontend(key, frontend)

    def _remove_frontends(self, keys: Iterable[FrontendKey]) -> None:
        removed = list(keys)
        for key in removed:
            del self._frontends[key]
            self._dropping.discard(key)
            self._staged.remove_frontend(key)
        self._claims.given_up(removed)
