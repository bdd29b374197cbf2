"""A generation: what is pinned, when it is adopted, and which maps the next one takes over."""

from __future__ import annotations

import struct
from ctypes import sizeof
from pathlib import Path

from generations import change, flow_states, ids, predecessors

from kproxy_ebpf.contract.maps import FAMILIES, FAMILY_MAPS, SHARED_MAPS, entries, pinned_name
from kproxy_ebpf.contract.programs import LISTING_PROGRAMS, PROGRAMS, SOCKET_PROGRAMS
from kproxy_ebpf.datapath.generations.generation import Generation, current, ensure
from kproxy_ebpf.datapath.generations.schema import own_layouts, read_layouts
from kproxy_ebpf.datapath.generations.sources import Constants
from kproxy_ebpf.linux.bpf import Map


def test_everything_is_pinned_and_adopted(bpffs: Path, small: Constants) -> None:
    assert current(bpffs) is None
    first = ensure(bpffs, small)
    assert not first.ready, "nothing has filled its tables"
    assert {pin.name for pin in (first.path / "programs").iterdir()} == {
        f"{p}_v{f}" for f in FAMILIES for p in (*PROGRAMS, *SOCKET_PROGRAMS[f], *LISTING_PROGRAMS)
    }
    assert ids(first).keys() == {f"{m}_v{f}" for m in FAMILY_MAPS for f in FAMILIES} | set(SHARED_MAPS)
    assert current(bpffs) is None, "built, not yet in force"
    first.activate()
    assert current(bpffs) == Generation(first.path)
    before = ids(first)
    again = ensure(bpffs, small)
    assert again == Generation(first.path, ready=True)
    assert ids(again) == before
    assert read_layouts(again.path) == own_layouts()
    with again.map("slots", 6) as slots, again.map("events") as events:
        assert slots.info.max_entries == small.slots_max
        assert events.info.max_entries == small.events_bytes
    with again.map("frontends", 6) as v6, again.map("frontends", 4) as v4:
        assert (v6.info.key_size, v4.info.key_size) == (20, 8)


def test_other_programs_take_the_maps_over(filled: Generation, bpffs: Path, small: Constants, sources: Path) -> None:
    change(sources, "#include", "/* another text */\n#include")
    before = ids(filled)
    second = ensure(bpffs, small, sources)
    assert second.digest != filled.digest
    assert second.ready
    kept = {name for name, id_ in ids(second).items() if before[name] == id_}
    own = {"programs_v4", "programs_v6", "predecessor_v4", "predecessor_v6", "schema"}
    assert before.keys() - kept == own
    assert current(bpffs) == filled, "not switched yet"
    second.copy_flows()
    assert predecessors(second) == []
    second.activate()
    second.retire_others()
    assert current(bpffs) == Generation(second.path)
    assert [path.name for path in sorted(filled.root.iterdir())] == sorted([second.digest, "current", "links"])
    assert list(flow_states(second).values()) == [0]


def test_the_programs_use_the_maps_that_are_pinned(
    filled: Generation, bpffs: Path, small: Constants, sources: Path
) -> None:
    """Taking a map over means that the new programs count in it, not in the one that BCC had made."""
    change(sources, "#include", "/* another text */\n#include")
    second = ensure(bpffs, small, sources)
    with second.program("from_pod", 4) as program, second.map("counters") as counters:
        before = counters.lookup(bytes(4))
        program.test_run(bytes(12) + b"\x08\0" + bytes((0x45, *bytes(7), 64, 1, *bytes(10))))
        program.test_run(bytes(12) + b"\x08\0" + bytes(60))
        rows = [counters.lookup(struct.pack("=I", index)) for index in range(counters.info.max_entries)]
    assert before is not None
    assert any(any(row or b"") for row in rows)


def test_descriptions_are_those_of_the_maps(generation: Generation) -> None:
    for family in FAMILIES:
        for name, (key, value) in entries(family).items():
            with Map.open(generation.path / "maps" / (pinned_name(name, family) if name in FAMILY_MAPS else name)) as m:
                assert name == "events" or (m.info.key_size, m.info.value_size) == (sizeof(key), sizeof(value)), name


def test_lost_pins_are_built_again(filled: Generation, bpffs: Path, small: Constants) -> None:
    (filled.path / "programs/to_pod_v6").unlink()
    before = ids(filled)
    again = ensure(bpffs, small)
    assert again.path == filled.path
    assert again.is_complete
    assert again.is_current
    assert again.ready
    assert ids(again)["flows_v4"] == before["flows_v4"]
