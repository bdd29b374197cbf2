"""Flows of two generations at the same ports: which of them the next generation has in the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from packets import BACKEND, BACKEND_B, CLIENT, VIP, VIP_B, Endpoint

from kproxy_ebpf.contract.layouts import SCHEMA_BYTES, Direction, FlowFlags, FlowState, layouts
from kproxy_ebpf.contract.maps import pinned_name
from kproxy_ebpf.datapath.flows.records import flow_record, flow_value
from kproxy_ebpf.datapath.generations.migrate_flows import FlowMigration
from kproxy_ebpf.datapath.generations.schema import own_layouts, write_layouts
from kproxy_ebpf.datapath.maps.packing import flow_key, now_seconds
from kproxy_ebpf.linux.bpf import ARRAY, LRU_HASH, Map
from kproxy_ebpf.model.flows import FlowRecord, FlowTuple, mirror_of

NEW, ESTABLISHED, CLOSING, CLOSED = FlowState
NOW = now_seconds()


@dataclass
class Tables:
    """The flow tables of two generations in a bpffs; `old` and `new` are folders."""

    old: Path
    new: Path
    family: int

    def connection(
        self,
        vip: Endpoint = VIP,
        backend: Endpoint = BACKEND,
        state: FlowState = ESTABLISHED,
        age: int = 60,
        idle: int = 0,
    ) -> FlowRecord:
        """The client's entry; each connection here has the same client and port."""
        ends = CLIENT, vip, Direction.FROM_POD
        return FlowRecord(
            self.family,
            self._tuple(*ends),
            self._tuple(CLIENT, backend, Direction.TO_POD),
            state,
            FlowFlags(0),
            backend_id=1,
            epoch=1,
            service_id=1,
            idle_seconds=idle,
            age_seconds=age,
            ifindex=1,
        )

    def write(self, folder: Path, *flows: FlowRecord) -> None:
        with self._open(folder) as table:
            for flow in flows:
                table.update(flow_key(self.family, flow.tuple), flow_value(flow, NOW))

    def has(self, *connections: FlowRecord) -> bool:
        """True if `new` holds both entries of each of these connections, and no other."""
        with self._open(self.new) as table:
            present = [flow_record(self.family, key, value, NOW) for key, value in table.items()]
        wanted = [entry for each in connections for entry in (each, mirror_of(each))]
        return len(present) == len(wanted) and all(entry in present for entry in wanted)

    def copy(self) -> None:
        with FlowMigration(self.old, self.new, "flows", self.family) as migration:
            migration.copy()

    def fetch(self) -> None:
        with FlowMigration(self.old, self.new, "flows", self.family) as migration:
            migration.copy_missing()

    def _open(self, folder: Path) -> Map:
        return Map.open(folder / "maps" / pinned_name("flows", self.family))

    def _tuple(self, source: Endpoint, destination: Endpoint, direction: Direction) -> FlowTuple:
        addresses = source.host.packed(self.family), destination.host.packed(self.family)
        return FlowTuple(addresses[0], source.port, addresses[1], destination.port, 6, direction)


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def tables(bpffs: Path, request: pytest.FixtureRequest) -> Iterator[Tables]:
    tables = Tables(bpffs / "old", bpffs / "new", request.param)
    name, structures = pinned_name("flows", request.param), layouts(request.param)
    sizes = (len(bytes(structures.Tuple())), len(bytes(structures.Flow())))
    for folder in (tables.old, tables.new):
        (folder / "maps").mkdir(parents=True)
        with (
            Map.create("flows", LRU_HASH, *sizes, 1024) as flows,
            Map.create("schema", ARRAY, 4, SCHEMA_BYTES, 1) as text,
        ):
            flows.pin(folder / "maps" / name)
            text.pin(folder / "maps/schema")
        write_layouts(folder)
    assert name in own_layouts()
    yield tables
    for pin in bpffs.glob("*/maps/*"):
        pin.unlink()


def both(flow: FlowRecord) -> tuple[FlowRecord, FlowRecord]:
    return flow, mirror_of(flow)


def test_what_is_over_is_neither_copied_nor_fetched(tables: Tables) -> None:
    lives, over = tables.connection(), tables.connection(VIP_B, BACKEND_B, CLOSED)
    tables.write(tables.old, *both(lives), *both(over))
    tables.copy()
    assert tables.has(lives)
    tables.fetch()
    assert tables.has(lives)


@pytest.mark.parametrize("backend", [BACKEND, BACKEND_B], ids=["the same backend", "another backend"])
def test_of_two_connections_at_one_key_the_later_counts(tables: Tables, backend: Endpoint) -> None:
    """The later one began after the first had been copied; neither entry of the first is left behind."""
    before, later = tables.connection(age=60), tables.connection(backend=backend, age=1)
    tables.write(tables.new, *both(before))
    tables.write(tables.old, *both(later))
    tables.fetch()
    assert tables.has(later)


@pytest.mark.parametrize("age", [60, 1], ids=["begun before", "begun in the same second"])
@pytest.mark.parametrize("backend", [BACKEND, BACKEND_B], ids=["the same backend", "another backend"])
def test_a_connection_that_began_here_stays_alone(tables: Tables, backend: Endpoint, age: int) -> None:
    """The other connection's mirror entry, which has a key of its own at another backend, is not copied either."""
    here, before = tables.connection(age=1), tables.connection(backend=backend, age=age, state=CLOSING)
    here = replace(here, backend_id=2, to=replace(here.to, source_port=here.to.source_port + 1))
    tables.write(tables.new, *both(here))
    tables.write(tables.old, *both(before))
    tables.fetch()
    assert tables.has(here)


@pytest.mark.parametrize(("age", "wins"), [(1, True), (60, False)], ids=["later", "before"])
def test_two_vips_of_one_backend_meet_at_the_answers_key(tables: Tables, age: int, *, wins: bool) -> None:
    here, other = tables.connection(VIP, age=30), tables.connection(VIP_B, age=age)
    tables.write(tables.new, *both(here))
    tables.write(tables.old, *both(other))
    tables.fetch()
    assert tables.has(other if wins else here)


@pytest.mark.parametrize(
    ("old", "new"), [(ESTABLISHED, NEW), (CLOSING, ESTABLISHED), (CLOSED, ESTABLISHED)], ids=lambda state: state.name
)
def test_of_one_connection_the_further_state_counts(tables: Tables, old: FlowState, new: FlowState) -> None:
    further, copied = tables.connection(state=old), tables.connection(state=new, idle=5)
    tables.write(tables.old, *both(further))
    tables.write(tables.new, *both(copied))
    tables.fetch()
    assert tables.has(further)
    tables.write(tables.new, *both(further))
    tables.write(tables.old, *both(copied))
    tables.fetch()
    assert tables.has(further)


def test_an_end_before_the_last_packet_here_was_another_connections(tables: Tables) -> None:
    """A SYN with the same ports found an entry that did not look closed, so the new connection uses that entry."""
    used_again, over = tables.connection(), tables.connection(state=CLOSED, idle=1)
    tables.write(tables.new, *both(used_again))
    tables.write(tables.old, *both(over))
    tables.fetch()
    assert tables.has(used_again)
