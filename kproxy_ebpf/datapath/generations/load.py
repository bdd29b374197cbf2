"""From compiled programs to pinned ones: maps are made or taken over, programs are loaded. No compiler is needed.

Pins are FOLDER/maps/<name>[_v4|_v6] and FOLDER/programs/<name>_v4|_v6.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kproxy_ebpf.contract.layouts import ProgramIndex
from kproxy_ebpf.contract.maps import (
    FAMILY_MAPS,
    FORWARDING_TABLES,
    MAPS,
    SERVICE_TABLES,
    SHARED_MAPS,
    pinned_name,
)
from kproxy_ebpf.contract.programs import LISTING_PROGRAMS, PROGRAMS, SOCKET_PROGRAMS
from kproxy_ebpf.contract.scalars import U32
from kproxy_ebpf.datapath.generations.object_file import Compiled, MapDefinition, ObjectFile
from kproxy_ebpf.datapath.generations.schema import own_layouts, read_layouts, write_layouts
from kproxy_ebpf.datapath.generations.sources import Constants
from kproxy_ebpf.errors import LoadError
from kproxy_ebpf.linux.bpf import Map, Program
from kproxy_ebpf.linux.bpf_load import (
    CGROUP_SOCK_ADDR,
    SCHED_CLS,
    TRACE_ITER,
    TRACING,
    iterator_id,
    load_btf,
    load_program,
)

_SIZED_BY_NODE = {row.name: size for row in MAPS if (size := row.size.lower()) in Constants.__dataclass_fields__}
_WALKED = {"list_tcp": "tcp", "list_udp": "udp"}


@dataclass(frozen=True, slots=True)
class _Hook:
    """What a program is loaded for."""

    function: str
    type: int
    attach_type: int = 0
    walked: str = ""
    """Of an iterator: what it walks."""


def load(
    objects: ObjectFile,
    constants: Constants,
    folder: Path,
    previous: Path | None,
    go_on: Callable[[], None] = lambda: None,
) -> None:
    """Make, load and pin everything in `folder`, whose maps/ and programs/ are empty.

    Maps of equal shape and layout are taken over from the generation in `previous`. `go_on` is called before each
    program and may raise. Raises LoadError.
    """
    with ExitStack() as stack:
        old = _maps_of_our_layout(previous, stack) if previous else {}
        made: dict[str, Map] = {}
        for family, compiled in objects.families.items():
            _make_maps(compiled, family, constants, old, made, folder / "maps", stack)
        # The verifier takes most of the time, and takes programs side by side.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            jobs = [
                pool.submit(_load_program, compiled, family, made, name, hook, folder / "programs", go_on)
                for family, compiled in objects.families.items()
                for name, hook in _hooks(compiled, family).items()
            ]
        for job in jobs:
            job.result()
    for family in objects.families:
        _fill_tail_calls(folder, family)
    write_layouts(folder)


def _make_maps(
    compiled: Compiled,
    family: int,
    constants: Constants,
    old: Mapping[str, Map],
    made: dict[str, Map],
    folder: Path,
    stack: ExitStack,
) -> None:
    """Add this family's maps, and the shared ones if they are not there yet, to `made`, by pinned name."""
    wanted = {
        pinned: sized(name, _definition(compiled, name), constants)
        for pinned, name in _names(family).items()
        if pinned not in made
    }
    taken = interchangeable(wanted, old, family)
    with _described(compiled.btf) as btf:
        for pinned, definition in wanted.items():
            made[pinned] = old[pinned] if pinned in taken else stack.enter_context(_create(pinned, definition, btf))
            made[pinned].pin(folder / pinned)


def sized(name: str, definition: MapDefinition, constants: Constants) -> MapDefinition:
    """With the size that this node gives to it, if it is not fixed in the sources."""
    if name not in _SIZED_BY_NODE:
        return definition
    return replace(definition, max_entries=getattr(constants, _SIZED_BY_NODE[name]))


def interchangeable(wanted: Mapping[str, MapDefinition], old: Mapping[str, Map], family: int) -> set[str]:
    """The maps that the previous generation has in the same shape; those that speak of one another all or none."""
    equal = {name for name, definition in wanted.items() if name in old and definition.shape == old[name].info.shape}
    for related in (SERVICE_TABLES, FORWARDING_TABLES):
        tables = {pinned_name(name, family) for name in related}
        if not tables <= equal:
            equal -= tables
    return equal


def _names(family: int) -> dict[str, str]:
    """C names by the names that maps are pinned under."""
    return {pinned_name(name, family): name for name in FAMILY_MAPS} | {name: name for name in SHARED_MAPS}


def _definition(compiled: Compiled, name: str) -> MapDefinition:
    try:
        return compiled.maps[name]
    except KeyError:
        raise LoadError(f"the sources make no map {name}: they do not fit this version") from None


@contextmanager
def _described(btf: bytes) -> Iterator[int]:
    """A descriptor of the maps' BTF."""
    try:
        loaded = load_btf(btf)
    except OSError as error:
        raise LoadError(f"the kernel refuses what describes the maps: {error}") from None
    with loaded:
        yield loaded.fd


def _create(name: str, definition: MapDefinition, btf: int) -> Map:
    types = (btf, definition.key_type, definition.value_type) if definition.value_type else (0, 0, 0)
    try:
        return Map.create(name, *definition.shape, types)
    except OSError as error:
        raise LoadError(f"a table can't be made: {error}") from None


def _hooks(compiled: Compiled, family: int) -> dict[str, _Hook]:
    """What is loaded, by the name that it is pinned under."""
    hooks = {name: _Hook(name, SCHED_CLS) for name in PROGRAMS}
    hooks |= {name: _Hook(name, CGROUP_SOCK_ADDR, at) for name, at in SOCKET_PROGRAMS[family].items()}
    for name, function in LISTING_PROGRAMS.items():
        if function in compiled.programs:
            hooks[name] = _Hook(function, TRACING, TRACE_ITER, _WALKED[name])
    return hooks


def _load_program(
    compiled: Compiled,
    family: int,
    made: Mapping[str, Map],
    name: str,
    hook: _Hook,
    folder: Path,
    go_on: Callable[[], None],
) -> None:
    go_on()
    if hook.function not in compiled.programs:
        raise LoadError(f"Unknown program {hook.function}: the sources do not fit this version")
    descriptors = {name: made[pinned].fd for pinned, name in _names(family).items()}
    instructions = compiled.programs[hook.function].relocated(descriptors)
    told = name, hook.type, compiled.license, instructions, hook.attach_type
    pin = folder / pinned_name(name, family)
    if not hook.walked:
        with load_program(*told) as program:
            program.pin(pin)
        return
    # A kernel that is locked down refuses tracing to everybody: the daemon goes on without the lists, and says so.
    with suppress(OSError, LoadError), load_program(*told, iterator_id(hook.walked)) as program:
        program.pin(pin)


def _fill_tail_calls(folder: Path, family: int) -> None:
    with Map.open(folder / "maps" / pinned_name("programs", family)) as prog_array:
        for index in ProgramIndex:
            with Program.open(folder / "programs" / pinned_name(index.name.lower(), family)) as program:
                prog_array.update(U32.pack(index), U32.pack(program.fd))


def _maps_of_our_layout(generation: Path, stack: ExitStack) -> dict[str, Map]:
    """Another generation's maps, by pinned name, whose entries this version would write the same. Prog arrays are never
    among them: tail calls stay within one generation.
    """
    theirs, pins = read_layouts(generation), generation / "maps"
    same = (name for name, entry in own_layouts().items() if theirs.get(name) == entry and (pins / name).exists())
    return {name: stack.enter_context(Map.open(pins / name)) for name in same}
