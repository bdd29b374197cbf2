"""Building, adopting and replacing generations."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ctypes import sizeof
from dataclasses import replace
from pathlib import Path

import pytest

from kproxy_ebpf.contract.layouts import SCHEMA_BYTES, PredecessorIndex, Switches, layouts
from kproxy_ebpf.contract.maps import FAMILIES, FAMILY_MAPS, SHARED_MAPS, entries, pinned_name
from kproxy_ebpf.contract.programs import LISTING_PROGRAMS, PROGRAMS, SOCKET_PROGRAMS
from kproxy_ebpf.datapath.generations.bpffs import NodeLock, is_bpffs
from kproxy_ebpf.datapath.generations.generation import Generation, current, ensure
from kproxy_ebpf.datapath.generations.schema import own_layouts, read_layouts, write_layouts
from kproxy_ebpf.datapath.generations.sources import Constants, source_folder
from kproxy_ebpf.datapath.maps.service_tables import LiveSettings, ServiceMaps
from kproxy_ebpf.datapath.sockets.terminate import SocketTerminator
from kproxy_ebpf.errors import BusyError, LoadError, NodeError
from kproxy_ebpf.linux.bpf import Map
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, SourceRangeKey, TableWrites

WRITES = TableWrites(
    backends={1: Backend(b"\x0a\0\0\1", 80, 1, 1, 1, 1)},
    slots={0: (1,)},
    source_ranges={SourceRangeKey(1, b"\x0a\0\0\0", 8)},
    frontends={FrontendKey(b"\x0a\x60\0\1", 80, 6): Frontend(1, 0, 1)},
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the C sources, to be changed."""
    return Path(shutil.copytree(source_folder(), tmp_path / "bpf_src"))


def change(sources: Path, old: str, new: str, file: str = "pod.c") -> None:
    text = (sources / file).read_text()
    assert old in text
    (sources / file).write_text(text.replace(old, new, 1))


def ids(generation: Generation) -> dict[str, int]:
    found = {}
    for pin in (generation.path / "maps").iterdir():
        with Map.open(pin) as map_:
            found[pin.name] = map_.info.id
    return found


def fill(generation: Generation) -> bytes:
    """Put a Service and a flow into the tables; return the flow's key."""
    tables = ServiceMaps(generation, 4)
    tables.apply(WRITES)
    tables.close()
    return add_flow(generation, 1)


def add_flow(generation: Generation, port: int, state: int = 0) -> bytes:
    key = bytes(layouts(4).Tuple(source_port_be=port, protocol=6))
    with generation.map("flows", 4) as flows:
        flows.update(key, bytes(layouts(4).Flow(state=state)))
    return key


def flow_states(generation: Generation) -> dict[bytes, int]:
    with generation.map("flows", 4) as flows:
        return {key: layouts(4).Flow.from_buffer_copy(value).state for key, value in flows.items()}


@pytest.fixture
def filled(in_force: Generation, generation: Generation) -> Iterator[Generation]:
    """A generation in force with something in its tables."""
    fill(in_force)
    yield in_force
    empty(generation)


def empty(generation: Generation) -> None:
    write_layouts(generation.path)
    with generation.map("flows", 4) as flows:
        for key in list(flows.keys()):
            flows.delete(key)
    tables = ServiceMaps(generation, 4)
    free = Backend(bytes(4), 0, 0, 0, 0, 0)
    contents = tables.read()
    removed = TableWrites(removed_frontends=set(contents.frontends), removed_source_ranges=contents.source_ranges)
    tables.apply(replace(removed, backends={1: free}))
    tables.close()


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


def test_tail_calls_survive_the_child(bpffs: Path, small: Constants) -> None:
    """The child is gone, the prog arrays are still filled: an undefined port of a VIP is answered with a RST."""
    generation = ensure(bpffs, small)
    tables = ServiceMaps(generation, 4)
    vip = bytes((10, 96, 0, 1))
    tables.apply(TableWrites(frontends={FrontendKey(vip, 0, 0): Frontend(0, 0, 0, 1)}))
    ip_header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, bytes((10, 0, 0, 9)), vip)
    syn = bytes(12) + b"\x08\0" + ip_header + struct.pack(">HHIIBBHHH", 4000, 81, 7, 0, 0x50, 2, 1000, 0, 0)
    with generation.program("from_pod", 4) as program, LiveSettings(generation) as live:
        live.switch(Switches.TC)
        answer = program.test_run(syn)
    assert answer.data[26:34] == vip + bytes((10, 0, 0, 9))
    assert answer.data[47] & 0x04, "a RST"
    tables.close()


def test_a_kernel_that_refuses_to_list_sockets_gets_all_else(bpffs: Path, small: Constants, sources: Path) -> None:
    """As one that is locked down does to every tracing program; here the verifier refuses a wrong one."""
    change(sources, "return list_socket(walk);", "return list_socket(walk) + 2;", "cgroup.c")
    generation = ensure(bpffs, small, sources)
    assert generation.is_complete
    with pytest.raises(OSError, match=next(iter(LISTING_PROGRAMS))):
        SocketTerminator(generation, 4)


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
    second.inherit()
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


def test_flows_made_meanwhile_follow(filled: Generation, bpffs: Path, small: Constants) -> None:
    second = ensure(bpffs, replace(small, flows_max=2048))
    closing, open_ = add_flow(filled, 2, state=2), add_flow(filled, 3, state=1)
    second.inherit()
    assert flow_states(second) == flow_states(filled)
    assert len(predecessors(second)) == 6
    second.activate()
    further, added = add_flow(filled, 3, state=2), add_flow(filled, 4)
    add_flow(second, 2, state=3)
    second.retire_others()
    states = flow_states(second)
    assert (states[closing], states[further], states[added]) == (3, 2, 0), "the later state counts"
    assert open_ == further
    assert predecessors(second) == []
    assert not filled.path.exists()


def predecessors(generation: Generation) -> list[bytes]:
    """The ids of the programs that have the packets of no known flow."""
    found = []
    for family in FAMILIES:
        with generation.map("predecessor", family) as predecessor:
            found += [id_ for index in PredecessorIndex if (id_ := predecessor.lookup(struct.pack("=I", index)))]
    return found


def test_a_takeover_that_was_killed_is_ended_by_the_next(filled: Generation, bpffs: Path, small: Constants) -> None:
    second = ensure(bpffs, replace(small, flows_max=2048))
    second.inherit()
    second.activate()
    added = add_flow(filled, 2)
    again = ensure(bpffs, replace(small, flows_max=2048))
    assert again == second
    assert again.ready
    again.inherit()
    assert len(predecessors(again)) == 6
    again.activate()
    again.retire_others()
    assert added in flow_states(again)
    assert predecessors(again) == []
    assert not filled.path.exists()


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


def relayout(generation: Generation, change: Callable[[dict[str, dict[str, dict[str, list[int]]]]], object]) -> None:
    """Let a generation's description of its layouts be another."""
    with generation.map("schema") as schema:
        text = json.loads((schema.lookup(bytes(4)) or b"").rstrip(b"\0"))
        change(text)
        schema.update(bytes(4), json.dumps(text).encode().ljust(SCHEMA_BYTES, b"\0"))


def test_entries_of_another_layout_are_carried_over_by_field(
    filled: Generation, bpffs: Path, small: Constants, sources: Path
) -> None:
    """As if two fields of each table had stood in each other's place, and one had had another name."""

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
    second.inherit()
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


def same(old: dict[str, int], new: dict[str, int]) -> set[str]:
    return {name for name in old if old[name] == new[name]}


@pytest.mark.parametrize(
    "change_text",
    [
        lambda text: text["flows_v4"]["value"].update(epoch=[12, 8]),
        lambda text: text["flows_v4"]["value"].update(epoch=[1000, 4]),
        lambda text: text.pop("flows_v6"),
        lambda text: text.clear(),
    ],
    ids=["a size", "nonsense", "a table", "everything"],
)
def test_flows_that_can_not_be_read_stay_with_their_programs(
    filled: Generation,
    bpffs: Path,
    small: Constants,
    sources: Path,
    change_text: Callable[[dict[str, object]], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relayout(filled, change_text)
    change(sources, "#include", "/* another text */\n#include")
    second = ensure(bpffs, small, sources)
    second.inherit()
    second.activate()
    for _ in range(2):  # and at the next start
        second.retire_others()
        assert len(predecessors(second)) == 6
        assert filled.is_complete
    change(sources, "#include", "/* a third */\n#include")
    third = ensure(bpffs, small, sources)
    third.inherit()
    assert predecessors(third) == predecessors(second), "handed on from one generation to the next"
    third.activate()
    third.retire_others()
    assert not second.path.exists()
    third.retire_aged()
    assert filled.is_complete
    monkeypatch.setattr("kproxy_ebpf.datapath.generations.generation.KEPT_SECONDS", 0)
    third.retire_aged()
    assert not filled.path.exists()
    assert predecessors(third) == []


def test_back_to_a_generation_that_still_serves_its_flows(
    filled: Generation, bpffs: Path, small: Constants, sources: Path
) -> None:
    original = filled.path
    relayout(filled, lambda text: text["flows_v4"]["value"].update(epoch=[12, 8]))
    change(sources, "#include", "/* another text */\n#include")
    second = ensure(bpffs, small, sources)
    second.inherit()
    second.activate()
    second.retire_others()
    assert len(predecessors(second)) == 6
    write_layouts(original)  # to itself it is readable
    back = ensure(bpffs, small)
    assert back.path == original
    kept = original.with_name(f"old-{original.name}")
    assert Generation(kept).is_complete
    flows = flow_states(Generation(kept))
    back.inherit()
    back.activate()
    back.retire_others()
    assert flow_states(back) == flows
    assert not kept.exists()


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


def test_leftovers_of_a_killed_build(filled: Generation, bpffs: Path, small: Constants) -> None:
    leftover = filled.root / f"new-{filled.digest}"
    (leftover / "maps").mkdir(parents=True)
    with filled.map("flows", 4) as flows:
        flows.pin(leftover / "maps/flows_v4")
    (filled.root / "new-current").symlink_to("nowhere")
    shutil.rmtree(filled.path)
    assert current(bpffs) is None
    second = ensure(bpffs, small)
    assert not leftover.exists()
    assert not (filled.root / "new-current").is_symlink()
    second.activate()
    assert current(bpffs) == Generation(second.path)


def test_a_build_killed_midway(bpffs: Path, small: Constants, tmp_path: Path) -> None:
    """Its child dies with it, and what it left does not disturb the next."""
    script = "import sys; from pathlib import Path; from kproxy_ebpf.datapath.generations.generation import ensure\n"
    script += "from kproxy_ebpf.datapath.generations.sources import Constants\n"
    script += "ensure(Path(sys.argv[1]), Constants(flows_max=1024))"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    builder = subprocess.Popen([sys.executable, "-c", script, str(bpffs)], env=environment)
    children = Path(f"/proc/{builder.pid}/task/{builder.pid}/children")
    until(lambda: bool(list(bpffs.glob("kproxy-ebpf/new-*/maps/*"))))
    child = int(children.read_text())
    builder.kill()
    builder.wait()
    until(lambda: not is_running(child))
    generation = ensure(bpffs, small)
    assert generation.is_complete
    assert [path.name for path in generation.root.glob("*-*")] == []


def is_running(pid: int) -> bool:
    """Not for zombies, which wait for init to reap them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("old", "new", "file", "words"),
    [
        ("int to_pod(", "int to_pod(no such thing", "pod.c", "bpf_src/pod.c:"),
        ("static __always_inline", "static nonsense", "packet/rewrite.h", "bpf_src/packet/rewrite.h:"),
        ("return finish", "return *(int *)(long)skb->len + finish", "pod.c", "invalid mem access"),
        ("int icmp_error(", "int icmp_oops(", "pod.c", "Unknown program"),
    ],
)
def test_what_can_not_be_loaded(
    filled: Generation, bpffs: Path, small: Constants, sources: Path, old: str, new: str, file: str, words: str
) -> None:
    change(sources, old, new, file)
    with pytest.raises(LoadError, match=words) as caught:
        ensure(bpffs, small, sources)
    assert "Traceback" not in str(caught.value)
    assert list(filled.root.glob("new-*")) == []
    assert current(bpffs) == filled


def test_bpffs_is_mounted_where_it_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "deep/bpffs"
    with NodeLock(folder):
        assert is_bpffs(folder)
    subprocess.run(["umount", folder], check=True)
    assert not is_bpffs(folder)


def test_no_place_for_bpffs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeError, match="mount one there"):
        NodeLock(tmp_path / "file")


def test_two_daemons_on_one_node(bpffs: Path) -> None:
    script = "import sys; from pathlib import Path; from kproxy_ebpf.datapath.generations.bpffs import NodeLock\n"
    script += "NodeLock(Path(sys.argv[1])).acquire()"
    other = [sys.executable, "-c", script, str(bpffs)]
    with NodeLock(bpffs):
        child = subprocess.run(other, capture_output=True, text=True, check=False)
        assert child.returncode != 0
        assert f"BusyError: process {os.getpid()} " in child.stderr
    assert subprocess.run(other, check=False).returncode == 0, "released"
    lock = NodeLock(bpffs)
    lock.acquire()
    with pytest.raises(BusyError):
        NodeLock(bpffs).acquire()
    lock.release()
