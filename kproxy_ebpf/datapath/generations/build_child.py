"""The child process that compiles, loads and pins: the only place that imports bcc, which costs 200 MB with its LLVM.

Reads one JSON object on standard input: `texts` ({family: C text}), `folder` (the new generation, with empty maps/ and
programs/), `previous` (the generation in force, or null) and `parent` (its pid). Exits with 1 where something can't be
compiled or loaded; the compiler's and the verifier's words are on standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from bcc import BPF
from bcc.libbcc import lib

from kproxy_ebpf.contract.layouts import ProgramIndex
from kproxy_ebpf.contract.maps import FAMILY_MAPS, FORWARDING_TABLES, SERVICE_TABLES, SHARED_MAPS, pinned_name
from kproxy_ebpf.contract.programs import LISTING_PROGRAMS, PROGRAMS, SOCKET_PROGRAMS
from kproxy_ebpf.contract.scalars import U32
from kproxy_ebpf.datapath.generations.schema import own_layouts, read_layouts, write_layouts
from kproxy_ebpf.linux.bpf import Map, MapInfo, Program
from kproxy_ebpf.linux.kernel import lists_sockets

_WARNINGS = ["-Wno-macro-redefined", "-Wno-unused-function", "-Wno-address-of-packed-member"]  # of BCC's own headers
_PR_SET_PDEATHSIG = 1
_TRACING = 26  # BPF_PROG_TYPE_TRACING


def main() -> None:
    order = json.load(sys.stdin)
    _die_with(order["parent"])
    folder = Path(order["folder"])
    old = _maps_of_our_layout(Path(order["previous"])) if order["previous"] else {}
    for family, text in order["texts"].items():
        _build(text, int(family), folder, old)
    write_layouts(folder)


def _die_with(parent: int) -> None:
    """End when the parent does, however that happens: the next daemon may already build in the same place."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def _build(text: str, family: int, folder: Path, old: dict[str, Map]) -> None:
    """Compile, take maps over, load and pin one family."""
    maps, programs = folder / "maps", folder / "programs"
    already = {path.name for path in maps.iterdir()}
    module = BPF(text=text.encode(), cflags=_WARNINGS)  # makes and pins the maps
    names = {pinned_name(name, family): name for name in FAMILY_MAPS} | {name: name for name in SHARED_MAPS}
    made = {pinned: name for pinned, name in names.items() if pinned not in already}
    shapes = {pinned: _info(maps / pinned) for pinned in made}

    for pinned in _interchangeable(made, shapes, old):
        _take_over(module, made[pinned], old[pinned], maps / pinned)
    _load(module, programs, family, maps / pinned_name("programs", family))


def _interchangeable(made: dict[str, str], shapes: dict[str, MapInfo], old: dict[str, Map]) -> set[str]:
    """The maps that the previous generation has in the same shape; those that speak of one another all or none."""
    equal = {pinned for pinned in made if pinned in old and shapes[pinned].shape == old[pinned].info.shape}
    for related in (SERVICE_TABLES, FORWARDING_TABLES):
        tables = {pinned for pinned, name in made.items() if name in related}
        if not tables <= equal:
            equal -= tables
    return equal


def _take_over(module: Any, name: str, old: Map, pin: Path) -> None:
    """Put `old` in place of the map that BCC has just made.

    The programs, not loaded yet, refer to maps by descriptor number, so the old map is given the new one's number.
    """
    os.dup2(old.fd, lib.bpf_table_fd(module.module, name.encode()), inheritable=False)
    pin.unlink()
    old.pin(pin)


def _load(module: Any, folder: Path, family: int, tail_calls: Path) -> None:
    programs = {name: _loaded(module, name, BPF.SCHED_CLS) for name in PROGRAMS}
    for name, hook in SOCKET_PROGRAMS[family].items():
        programs[name] = _loaded(module, name, BPF.CGROUP_SOCK_ADDR, attach_type=hook)
    if lists_sockets():
        # A kernel that is locked down refuses tracing to everybody: the daemon goes on without the lists, and says so.
        with suppress(Exception):
            programs |= {name: _loaded(module, function, _TRACING) for name, function in LISTING_PROGRAMS.items()}
    for name, program in programs.items():
        program.pin(folder / pinned_name(name, family))
    with Map.open(tail_calls) as prog_array:
        for index in ProgramIndex:
            prog_array.update(U32.pack(index), U32.pack(programs[index.name.lower()].fd))


def _loaded(module: Any, name: str, type_: int, **options: Any) -> Program:
    return Program(os.dup(module.load_func(name.encode(), type_, **options).fd), name)


def _maps_of_our_layout(generation: Path) -> dict[str, Map]:
    """Another generation's maps, by pinned name, whose entries this version would write the same. Prog arrays are never
    among them: tail calls stay within one generation.
    """
    theirs, pins = read_layouts(generation), generation / "maps"
    same = (name for name, entry in own_layouts().items() if theirs.get(name) == entry and (pins / name).exists())
    return {name: Map.open(pins / name) for name in same}


def _info(pin: Path) -> MapInfo:
    with Map.open(pin) as map_:
        return map_.info


if __name__ == "__main__":
    main()
