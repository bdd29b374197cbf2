"""Tables of Services in real maps: what is written is read back, and in which order it is written."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from harness import u32

from kproxy_ebpf.contract.layouts import BackendFlags, BackendState, FrontendFlags, layouts
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.counters import Occupancy
from kproxy_ebpf.datapath.maps.service_tables import ServiceMaps
from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, SourceRangeKey, TableContents, TableWrites
from kproxy_ebpf.model.services import packed

ADDRESSES = {4: ("10.96.0.10", "10.244.1.7", "10.0.0.0"), 6: ("fd00:96::a", "fd00:244:1::7", "fd00::")}


@pytest.fixture(params=[4, 6])
def tables(request: pytest.FixtureRequest, generation: Generation) -> Iterator[ServiceMaps]:
    maps = ServiceMaps(generation, request.param)
    yield maps
    contents = maps.read()
    maps.apply(
        TableWrites(
            backends={
                index: Backend(bytes(4 if maps.family == 4 else 16), 0, 0, 0, 0, 0) for index in contents.backends
            },
            removed_frontends=set(contents.frontends),
            removed_source_ranges=contents.source_ranges,
        )
    )
    assert maps.read() == TableContents()
    maps.close()


def sample(family: int) -> TableContents:
    vip, pod, network = map(packed, ADDRESSES[family])
    return TableContents(
        frontends={
            FrontendKey(vip, 80, 6): Frontend(7, 100, 3, FrontendFlags.SOURCE_RANGES, 10800),
            FrontendKey(vip, 0, 0): Frontend(8, 0, 0, FrontendFlags.VIP_ONLY),
        },
        slots={100: (1, 1023, 1)},
        backends={
            1: Backend(pod, 8080, BackendState.USABLE, BackendFlags.READY | BackendFlags.LOCAL, 5, 7),
            1023: Backend(vip, 65535, BackendState.GONE, 0, 0xFFFFFFFF, 0xFFFFFFFE),
        },
        source_ranges={SourceRangeKey(7, network, 8), SourceRangeKey(7, network, 0)},
    )


def written(contents: TableContents) -> TableWrites:
    return TableWrites(
        backends=contents.backends,
        slots=contents.slots,
        source_ranges=contents.source_ranges,
        frontends=contents.frontends,
    )


def test_what_is_applied_is_read_back(tables: ServiceMaps) -> None:
    wanted = sample(tables.family)
    tables.apply(written(wanted))
    assert tables.read() == wanted
    tables.apply(written(wanted))
    assert tables.read() == wanted, "applying twice is applying once"


def test_the_kernel_sees_what_the_contract_says(tables: ServiceMaps, generation: Generation) -> None:
    wanted = sample(tables.family)
    tables.apply(written(wanted))
    structures = layouts(tables.family)
    with generation.map("backends", tables.family) as backends, generation.map("slots", tables.family) as slots:
        backend = structures.Backend.from_buffer_copy(backends.lookup(u32(1)) or b"")
        assert [slots.lookup(u32(index)) for index in (99, 100, 101, 102, 103)] == [
            *(u32(0), u32(1), u32(1023), u32(1), u32(0))
        ]
    assert (bytes(backend.address), backend.port_be, backend.state) == (packed(ADDRESSES[tables.family][1]), 8080, 1)
    assert (backend.flags, backend.epoch, backend.service_id) == (3, 5, 7)
    with generation.map("frontends", tables.family) as frontends:
        key = structures.FrontendKey()
        key.address[:] = packed(ADDRESSES[tables.family][0])
        key.port_be, key.protocol = 80, 6
        frontend = structures.Frontend.from_buffer_copy(frontends.lookup(bytes(key)) or b"")
    assert (frontend.service_id, frontend.slot_base, frontend.slot_count) == (7, 100, 3)
    assert (frontend.flags, frontend.affinity_seconds) == (FrontendFlags.SOURCE_RANGES, 10800)
    with generation.map("source_ranges", tables.family) as ranges:
        inside = structures.SourceRangeKey(32 + 8 * len(wanted.backends[1].address), 7)
        inside.client[:] = packed(ADDRESSES[tables.family][1])
        assert ranges.lookup(bytes(inside)) == u32(0)
        inside.service_id = 8
        assert ranges.lookup(bytes(inside)) is None


def test_states_change_alone(tables: ServiceMaps) -> None:
    wanted = sample(tables.family)
    tables.apply(written(wanted))
    tables.apply(TableWrites(backend_states={1: (BackendState.KEEP, BackendFlags.LOCAL)}))
    assert tables.read().backends == wanted.backends | {
        1: wanted.backends[1]._replace(state=BackendState.KEEP, flags=BackendFlags.LOCAL)
    }


def test_removals(tables: ServiceMaps) -> None:
    wanted = sample(tables.family)
    tables.apply(written(wanted))
    key = next(iter(wanted.frontends))
    gone = next(iter(wanted.source_ranges))
    tables.apply(TableWrites(removed_frontends={key}, removed_source_ranges={gone}))
    contents = tables.read()
    assert contents.frontends.keys() == wanted.frontends.keys() - {key}
    assert contents.source_ranges == wanted.source_ranges - {gone}
    assert contents.slots == {}, "only ranges that frontends point at are read"
    tables.apply(TableWrites(removed_frontends={key}, removed_source_ranges={gone}))


@pytest.mark.parametrize(
    ("writes", "table"),
    [
        (TableWrites(backends={1024: Backend(bytes(4), 1, 1, 0, 1, 1)}), "backends_v4"),
        (TableWrites(slots={4095: (1, 2)}), "slots_v4"),
        (TableWrites(backend_states={1024: (1, 0)}), "backends_v4"),
        (
            TableWrites(frontends={FrontendKey(struct.pack(">I", i), 1, 6): Frontend(1, 0, 0) for i in range(1025)}),
            "frontends_v4",
        ),
        (TableWrites(source_ranges={SourceRangeKey(i, bytes(4), 0) for i in range(65)}), "source_ranges_v4"),
    ],
)
def test_a_full_table_is_named(generation: Generation, writes: TableWrites, table: str) -> None:
    maps = ServiceMaps(generation, 4)
    with pytest.raises(MapFullError, match=table) as caught:
        maps.apply(writes)
    assert caught.value.table == table
    maps.apply(TableWrites(removed_frontends=set(writes.frontends), removed_source_ranges=set(writes.source_ranges)))
    assert maps.read() == TableContents(), "an index out of range writes nothing"
    maps.close()


OLD_KEY, NEW_KEY = FrontendKey(bytes(4), 1, 6), FrontendKey(bytes(4), 2, 6)
OLD_RANGE, NEW_RANGE = SourceRangeKey(1, bytes(4), 0), SourceRangeKey(2, bytes(4), 0)
IMPOSSIBLE: dict[str, Any] = {
    "backends": {1024: Backend(bytes(4), 1, 1, 0, 1, 1)},
    "slots": {4095: (1, 2)},
    "source_ranges": {SourceRangeKey(number, bytes(4), 0) for number in range(3, 68)},
    "frontends": {FrontendKey(struct.pack(">I", number), 3, 6): Frontend(1, 0, 0) for number in range(1025)},
    "backend_states": {1024: (1, 0)},
}


@pytest.mark.parametrize("failing", IMPOSSIBLE)
def test_writes_are_done_in_the_order_of_their_fields(generation: Generation, failing: str) -> None:
    """What comes before the one that fails is done, what comes after it is not: so nothing ever points at nothing."""
    maps = ServiceMaps(generation, 4)
    usable = Backend(bytes(4), 1, BackendState.USABLE, 0, 1, 1)
    maps.apply(TableWrites(backends={1: usable}, frontends={OLD_KEY: Frontend(1, 9, 1)}, source_ranges={OLD_RANGE}))
    writes = TableWrites(
        backends={2: usable},
        slots={9: (2,)},
        source_ranges={NEW_RANGE},
        frontends={NEW_KEY: Frontend(1, 9, 1)},
        removed_frontends={OLD_KEY},
        removed_source_ranges={OLD_RANGE},
        backend_states={1: (BackendState.GONE, 0)},
    )
    with pytest.raises(MapFullError):
        maps.apply(replace(writes, **{failing: IMPOSSIBLE[failing]}))
    contents = maps.read()
    done = {
        "backends": 2 in contents.backends,
        "slots": contents.slots.get(9) == (2,),
        "source_ranges": NEW_RANGE in contents.source_ranges,
        "frontends": NEW_KEY in contents.frontends,
        "removed_frontends": OLD_KEY not in contents.frontends,
        "removed_source_ranges": OLD_RANGE not in contents.source_ranges,
        "backend_states": contents.backends[1].state == BackendState.GONE,
    }
    names = [each.name for each in fields(TableWrites)]
    assert [name for name in names if done[name]] == names[: names.index(failing)]
    empty = Backend(bytes(4), 0, 0, 0, 0, 0)
    maps.apply(
        TableWrites(
            backends={1: empty, 2: empty},
            slots={9: (0,)},
            removed_frontends=set(contents.frontends),
            removed_source_ranges=contents.source_ranges,
        )
    )
    maps.close()


def test_occupancy(tables: ServiceMaps, generation: Generation) -> None:
    tables.apply(written(sample(tables.family)))
    family = f"_v{tables.family}"
    reading = Occupancy(generation).read()
    assert {name: entry for name, entry in reading.items() if name.endswith(family)} == {
        f"frontends{family}": (2, 1024),
        f"slots{family}": (3, 4096),
        f"backends{family}": (2, 1024),
        f"source_ranges{family}": (2, 64),
        f"flows{family}": (0, reading[f"flows{family}"][1]),
        f"affinity{family}": (0, reading[f"affinity{family}"][1]),
    }
