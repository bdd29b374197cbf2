"""Tables of the next generation: of another size, of another layout, of one that can't be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from generations import WRITES, add_flow, change, flow_states, ids, relayout, same

from kproxy_ebpf.contract.layouts import SCHEMA_BYTES, Switches, layouts
from kproxy_ebpf.datapath.generations.generation import Generation, current, ensure
from kproxy_ebpf.datapath.generations.schema import read_layouts
from kproxy_ebpf.datapath.generations.sources import Constants
from kproxy_ebpf.datapath.maps.service_tables import ServiceMaps
from kproxy_ebpf.datapath.maps.settings import LiveSettings
from kproxy_ebpf.model.service_tables import Frontend, FrontendKey


def test_a_larger_table_gets_what_the_smaller_held(filled: Generation, bpffs: Path, small: Constants) -> None:
    before = ids(filled)
    second = ensure(bpffs, replace(small, slots_max=8192, flows_max=2048))
    assert second.ready
    after = ids(second)
    tables = {"frontends", "slots", "backends", "source_ranges"}
    for name in before:
        fresh = name.split("_v")[0] in tables | {"flows", "programs", "predecessor", "schema"}
        assert (before[name] != after[name]) == fresh, f"{name}: the service tables stay together"
    maps = ServiceMaps(second, 4)
    contents = maps.read()
    assert (contents.backends, contents.frontends) == (WRITES.backends, WRITES.frontends)
    assert (contents.slots, contents.source_ranges) == (WRITES.slots, WRITES.source_ranges)
    maps.close()


def test_a_smaller_table_that_has_room(filled: Generation, bpffs: Path, small: Constants) -> None:
    second = ensure(bpffs, replace(small, frontends_max=2, backends_max=2, slots_max=4096, source_ranges_max=1))
    assert second.ready
    maps = ServiceMaps(second, 4)
    contents = maps.read()
    assert (contents.backends, contents.frontends) == (WRITES.backends, WRITES.frontends)
    maps.close()


@pytest.mark.parametrize("size", ["frontends_max", "backends_max"])
def test_a_table_too_small_is_filled_anew(filled: Generation, bpffs: Path, small: Constants, size: str) -> None:
    tables = ServiceMaps(filled, 4)
    tables.apply(replace(WRITES, frontends={FrontendKey(b"\x0a\x60\0\2", 80, 6): Frontend(1, 0, 1)}))
    tables.close()
    second = ensure(bpffs, replace(small, **{size: 1}))
    assert not second.ready
    maps = ServiceMaps(second, 4)
    assert maps.read().frontends == {}
    maps.close()
    assert flow_states(second).keys() == flow_states(filled).keys(), "the flow table is the same one"
    assert current(bpffs) == filled


def test_entries_of_another_layout_are_carried_over_by_field(
    filled: Generation, bpffs: Path, small: Constants, sources: Path
) -> None:
    """As if two fields of each table had been exchanged, and one had had another name."""

    def change_all(text: dict[str, dict[str, dict[str, list[int]]]]) -> None:
        flow, backend = text["flows_v4"]["value"], text["backends_v4"]["value"]
        flow["epoch"], flow["backend_id"] = flow["backend_id"], flow["epoch"]
        flow["gone"] = flow.pop("service_id")
        backend["epoch"], backend["service_id"] = backend["service_id"], backend["epoch"]

    tables = ServiceMaps(filled, 4)
    tables.apply(replace(WRITES, backends={1: WRITES.backends[1]._replace(epoch=7, service_id=9)}))
    tables.close()
    flow = layouts(4).Flow
    key = add_flow(filled, 1)
    with filled.map("flows", 4) as flows:
        flows.update(key, bytes(flow(backend_id=1, epoch=7, service_id=9, state=1, created_seconds=5)))
    relayout(filled, change_all)
    change(sources, "#include", "/* another text */\n#include")
    second = ensure(bpffs, small, sources)
    assert second.ready
    old, new = ids(filled), ids(second)
    assert {"flows_v4", "frontends_v4", "slots_v4", "backends_v4", "source_ranges_v4"} & same(old, new) == set()
    assert {"flows_v6", "frontends_v6", "affinity_v4", "counters", "events"} <= same(old, new)
    tables = ServiceMaps(second, 4)
    contents = tables.read()
    assert contents.backends == {1: WRITES.backends[1]._replace(epoch=9, service_id=7)}
    assert (contents.frontends, contents.source_ranges) == (WRITES.frontends, WRITES.source_ranges)
    tables.close()
    second.copy_flows()
    with second.map("flows", 4) as flows:
        carried = flow.from_buffer_copy(flows.lookup(key) or b"")
    told = (carried.backend_id, carried.epoch, carried.service_id, carried.state, carried.created_seconds)
    assert told == (7, 1, 0, 1, 5)
    second.activate()
    second.retire_others()
    assert not filled.path.exists()


def test_what_is_switched_stays_switched(filled: Generation, bpffs: Path, small: Constants, sources: Path) -> None:
    """New connections must not miss the programs until the daemon has read its settings."""
    with LiveSettings(filled) as live:
        live.switch(Switches.TC)
    with filled.map("settings") as settings:
        value = settings.lookup(bytes(4)) or b""
        settings.update(bytes(4), value[4:8] + value[:4] + value[8:])

    def exchange(text: dict[str, dict[str, dict[str, list[int]]]]) -> None:
        fields = text["settings"]["value"]
        fields["switches"], fields["events_level"] = fields["events_level"], fields["switches"]

    relayout(filled, exchange)
    change(sources, "#include", "/* another text */\n#include")
    second = ensure(bpffs, small, sources)
    assert ids(second)["settings"] != ids(filled)["settings"]
    with LiveSettings(second) as live:
        assert live.switches() == Switches.TC
    with filled.map("settings") as settings:
        settings.update(bytes(4), bytes(len(value)))


def test_a_schema_that_is_no_text(filled: Generation, bpffs: Path, small: Constants, sources: Path) -> None:
    for text in (b"", b"1", b"[]", b'{"flows_v4": 3}', b"\xff\xff", b'{"flows_v4": {"key": {"a": [1]}, "value": {}}}'):
        with filled.map("schema") as schema:
            schema.update(bytes(4), text.ljust(SCHEMA_BYTES, b"\0"))
        assert read_layouts(filled.path) == {}
    change(sources, "#include", "/* another text */\n#include")
    second = ensure(bpffs, small, sources)
    assert not second.ready
    assert same(ids(filled), ids(second)) == set()
    assert flow_states(second) == {}
    assert len(flow_states(filled)) == 1, "the generation in force is as it was"
