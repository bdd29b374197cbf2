"""Generations with something in their tables, and sources and layouts that are changed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kproxy_ebpf.contract.layouts import SCHEMA_BYTES, PredecessorIndex, layouts
from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.generations.schema import write_layouts
from kproxy_ebpf.datapath.maps.service_tables import ServiceMaps
from kproxy_ebpf.linux.bpf import Map
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, SourceRangeKey, TableWrites

WRITES = TableWrites(
    backends={1: Backend(b"\x0a\0\0\1", 80, 1, 1, 1, 1)},
    slots={0: (1,)},
    source_ranges={SourceRangeKey(1, b"\x0a\0\0\0", 8)},
    frontends={FrontendKey(b"\x0a\x60\0\1", 80, 6): Frontend(1, 0, 1)},
)


def change(sources: Path, old: str, new: str, file: str = "main.c") -> None:
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


def empty_tables(generation: Generation) -> None:
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


def predecessors(generation: Generation) -> list[bytes]:
    """The ids of the programs that have the packets of no known flow."""
    found = []
    for family in FAMILIES:
        with generation.map("predecessor", family) as predecessor:
            found += [id_ for index in PredecessorIndex if (id_ := predecessor.lookup(struct.pack("=I", index)))]
    return found


def relayout(generation: Generation, change: Callable[[dict[str, dict[str, dict[str, list[int]]]]], object]) -> None:
    """Let a generation's description of its layouts be another."""
    with generation.map("schema") as schema:
        text = json.loads((schema.lookup(bytes(4)) or b"").rstrip(b"\0"))
        change(text)
        schema.update(bytes(4), json.dumps(text).encode().ljust(SCHEMA_BYTES, b"\0"))


def same(old: dict[str, int], new: dict[str, int]) -> set[str]:
    return {name for name in old if old[name] == new[name]}
