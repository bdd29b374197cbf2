"""Building a generation: what the child leaves, what ends it, what it says of sources that can't be loaded."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from generations import change

from kproxy_ebpf.contract.layouts import Switches
from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.contract.programs import LISTING_PROGRAMS
from kproxy_ebpf.datapath.generations.generation import Generation, current, ensure
from kproxy_ebpf.datapath.generations.kept import default_folder
from kproxy_ebpf.datapath.generations.sources import Constants
from kproxy_ebpf.datapath.maps.service_tables import ServiceMaps
from kproxy_ebpf.datapath.maps.settings import LiveSettings
from kproxy_ebpf.datapath.sockets.terminate import SocketTerminator
from kproxy_ebpf.errors import LoadError
from kproxy_ebpf.model.service_tables import Frontend, FrontendKey, TableWrites


def test_tail_calls_survive_the_child(bpffs: Path, small: Constants) -> None:
    """The prog arrays are still filled after the child is gone: an undefined port of a VIP is answered with a RST."""
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
    """A kernel in lockdown refuses every tracing program; here the verifier refuses one that is wrong."""
    change(sources, "return list_socket(walk);", "return list_socket(walk) + 2;", "socket/list.h")
    generation = ensure(bpffs, small, sources)
    assert generation.is_complete
    with pytest.raises(OSError, match=next(iter(LISTING_PROGRAMS))):
        SocketTerminator(generation, 4)


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


def building(bpffs: Path, kept: Path) -> subprocess.Popen[bytes]:
    """A process that builds a generation with compiled programs from `kept`."""
    script = "import sys; from pathlib import Path; from kproxy_ebpf.datapath.generations.generation import ensure\n"
    script += "from kproxy_ebpf.datapath.generations.sources import Constants\n"
    script += "ensure(Path(sys.argv[1]), Constants(flows_max=1024))"
    return subprocess.Popen(
        [sys.executable, "-c", script, str(bpffs)], env=os.environ | {"KPROXY_CACHE_DIR": str(kept)}
    )


def test_a_build_killed_while_it_compiles(bpffs: Path, small: Constants, tmp_path: Path) -> None:
    """Its children die with it, and what it left does not disturb the next."""
    builder = building(bpffs, tmp_path)
    children = Path(f"/proc/{builder.pid}/task/{builder.pid}/children")
    until(lambda: len(children.read_text().split()) == len(FAMILIES))
    compilers = [int(pid) for pid in children.read_text().split()]
    builder.kill()
    builder.wait()
    until(lambda: not any(map(is_running, compilers)))
    generation = ensure(bpffs, small)
    assert generation.is_complete
    assert [path.name for path in generation.root.glob("*-*")] == []


def test_a_build_killed_while_it_loads(bpffs: Path, small: Constants, generation: Generation) -> None:
    builder = building(bpffs, default_folder())
    until(lambda: bool(list(bpffs.glob("kproxy-ebpf/new-*/maps/*"))))
    builder.kill()
    builder.wait()
    generation = ensure(bpffs, small)
    assert generation.is_complete
    assert [path.name for path in generation.root.glob("*-*")] == []


def is_running(pid: int) -> bool:
    """True if the process runs; a zombie, which waits for init to reap it, does not."""
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
