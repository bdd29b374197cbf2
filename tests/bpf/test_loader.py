"""Building, adopting and replacing generations."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kproxy_ebpf.datapath.bpf import Descriptor, Map
from kproxy_ebpf.datapath.bpffs import NodeLock, is_bpffs, root
from kproxy_ebpf.datapath.contract import (
    FAMILY_MAPS,
    LISTING_PROGRAM,
    PROGRAMS,
    SCHEMA,
    SHARED_MAPS,
    SOCKET_PROGRAMS,
    Switches,
    layouts,
)
from kproxy_ebpf.datapath.generation import Generation, current, ensure, remove_all
from kproxy_ebpf.datapath.maps import LiveSettings, ServiceMaps
from kproxy_ebpf.datapath.source import Constants, source_folder
from kproxy_ebpf.errors import BusyError, LoadError, NodeError
from kproxy_ebpf.model.tables import Backend, Frontend, FrontendKey, SourceRangeKey, TableWrites

FAMILIES = (4, 6)
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
def filled(bpffs: Path, generation: Generation) -> Iterator[Generation]:
    """A generation in force with something in its tables: the session's, pinned a second time."""
    twin = Generation(root(bpffs) / generation.digest)
    for kind in ("maps", "programs"):
        (twin.path / kind).mkdir(parents=True)
        for pin in (generation.path / kind).iterdir():
            with Descriptor.open(pin) as object_:
                object_.pin(twin.path / kind / pin.name)
    fill(twin)
    twin.activate()
    yield twin
    remove_all(bpffs)
    assert list(bpffs.glob("kproxy-ebpf*")) == []
    empty(generation)


def empty(generation: Generation) -> None:
    with generation.map("schema") as schema, generation.map("flows", 4) as flows:
        schema.update(bytes(4), struct.pack("=I", SCHEMA))
        for key in list(flows.keys()):
            flows.delete(key)
    tables = ServiceMaps(generation, 4)
    free = Backend(bytes(4), 0, 0, 0, 0, 0)
    removed = TableWrites(removed_frontends=set(WRITES.frontends), removed_source_ranges=WRITES.source_ranges)
    tables.apply(replace(removed, backends={1: free}))
    tables.close()


def test_everything_is_pinned_and_adopted(bpffs: Path, small: Constants) -> None:
    assert current(bpffs) is None
    first = ensure(bpffs, small)
    assert not first.ready, "nothing has filled its tables"
    assert {pin.name for pin in (first.path / "programs").iterdir()} == {
        f"{p}_v{f}" for f in FAMILIES for p in (*PROGRAMS, *SOCKET_PROGRAMS[f], LISTING_PROGRAM)
    }
    assert ids(first).keys() == {f"{m}_v{f}" for m in FAMILY_MAPS for f in FAMILIES} | set(SHARED_MAPS)
    assert current(bpffs) is None, "built, not yet in force"
    first.activate()
    assert current(bpffs) == Generation(first.path)
    before = ids(first)
    again = ensure(bpffs, small)
    assert again == Generation(first.path, ready=True)
    assert ids(again) == before
    with again.map("schema") as schema, again.map("slots", 6) as slots, again.map("events") as events:
        assert schema.lookup(bytes(4)) == struct.pack("=I", SCHEMA)
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


def test_other_programs_take_the_maps_over(filled: Generation, bpffs: Path, small: Constants, sources: Path) -> None:
    change(sources, "#include", "/* another text */\n#include")
    before = ids(filled)
    second = ensure(bpffs, small, sources)
    assert second.digest != filled.digest
    assert second.ready
    kept = {name for name, id_ in ids(second).items() if before[name] == id_}
    assert before.keys() - kept == {"programs_v4", "programs_v6", "schema"}
    assert current(bpffs) == filled, "not switched yet"
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
        fresh = name.split("_v")[0] in tables | {"flows", "programs", "schema"}
        assert (before[name] != after[name]) == fresh, f"{name}: the service tables stay together"
    maps = ServiceMaps(second, 4)
    contents = maps.read()
    assert (contents.backends, contents.frontends) == (WRITES.backends, WRITES.frontends)
    assert (contents.slots, contents.source_ranges) == (WRITES.slots, WRITES.source_ranges)
    maps.close()
    old = add_flow(filled, 1, state=2)
    added = add_flow(filled, 2)
    assert flow_states(second) == {old: 0}
    second.activate()
    second.retire_others()
    assert flow_states(second) == {old: 0, added: 0}, "flows made meanwhile follow, none is overwritten"


def test_a_smaller_table_is_filled_anew(filled: Generation, bpffs: Path, small: Constants) -> None:
    second = ensure(bpffs, replace(small, frontends_max=2))
    assert not second.ready
    maps = ServiceMaps(second, 4)
    assert maps.read().frontends == {}
    maps.close()
    assert flow_states(second).keys() == flow_states(filled).keys(), "the flow table is the same one"
    assert current(bpffs) == filled


def test_another_schema_is_never_read(filled: Generation, bpffs: Path, small: Constants, sources: Path) -> None:
    with filled.map("schema") as schema:
        schema.update(bytes(4), struct.pack("=I", SCHEMA + 1))
    change(sources, "#include", "/* another text */\n#include")
    second = ensure(bpffs, small, sources)
    assert not second.ready
    assert not set(ids(second).values()) & set(ids(filled).values())
    assert flow_states(second) == {}
    assert len(flow_states(filled)) == 1, "the generation in force is as it was"
    second.activate()
    second.retire_others()
    assert flow_states(second) == {}


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
    script = "import sys; from pathlib import Path; from kproxy_ebpf.datapath.generation import ensure\n"
    script += "from kproxy_ebpf.datapath.source import Constants; ensure(Path(sys.argv[1]), Constants(flows_max=1024))"
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
        ("static __always_inline", "static nonsense", "nat.h", "bpf_src/nat.h:"),
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
    script = "import sys; from pathlib import Path; from kproxy_ebpf.datapath.bpffs import NodeLock\n"
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
