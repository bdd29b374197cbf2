"""The table of maps says what bpf_src/maps.h says; every other list of maps follows from it."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from hack.contract import camel
from kproxy_ebpf.contract import maps, programs
from kproxy_ebpf.contract.layouts import ProgramIndex
from kproxy_ebpf.contract.maps import MAPS, Group
from kproxy_ebpf.datapath.generations.sources import Constants, source_folder
from kproxy_ebpf.plan.tables.services import Capacities

SOURCES = source_folder()
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_TABLE = re.compile(
    r'^(?P<whose>FAMILY|SHARED)_TABLE\("(?P<kind>\w+)", (?P<key>[\w ]+), (?P<value>[\w ]+), (?P<name>\w+), '
    r"(?P<size>\w+), \w+\);$",
    re.MULTILINE,
)


def source(*names: str) -> str:
    return _COMMENT.sub("", "".join((SOURCES / name).read_text() for name in names))


def in_python(c: str) -> str:
    return {"__u32": "u32", "struct address": "address"}.get(c) or camel(c.removeprefix("struct "))


def test_each_table_has_its_row() -> None:
    ours = {
        row.name: (row.key, row.value, row.size, row.is_shared)
        for row in MAPS
        if row.group is not Group.STORAGES and row.name != "events"
    }
    declared = list(_TABLE.finditer(source("maps.h")))
    assert ours == {
        table["name"]: (in_python(table["key"]), in_python(table["value"]), table["size"], table["whose"] == "SHARED")
        for table in declared
    }
    arrays_of_programs = {table["name"] for table in declared if table["kind"] == "prog"}
    assert set(maps.of_group(Group.FIXED)) == arrays_of_programs | {"schema"}


def test_each_storage_has_its_row() -> None:
    storages = re.findall(r"^BPF_SK_STORAGE\((\w+), struct (\w+)\);", source("socket/peer.h"), re.MULTILINE)
    ours = [(row.name, row.value, row.key, row.size, row.is_shared) for row in MAPS if row.group is Group.STORAGES]
    assert ours == [(name, camel(value), "u32", "", False) for name, value in storages]


def test_the_ring_buffer_has_its_row() -> None:
    (events,) = (row for row in MAPS if row.name == "events")
    text = source("maps.h")
    assert 'section("maps/ringbuf"))) struct events_table_t events = {' in text
    assert f".max_entries = {events.size}," in text
    assert events.is_shared


def test_names_are_unique() -> None:
    names = [row.name for row in MAPS]
    assert len(names) == len(set(names))
    assert sorted(names) == sorted([*maps.FAMILY_MAPS, *maps.SHARED_MAPS])


def test_every_size_that_can_be_set_is_a_constant() -> None:
    sizes = {row.size.lower() for row in MAPS if row.size.endswith(("_MAX", "_BYTES"))}
    assert {field.name for field in fields(Constants)} == sizes


def test_the_planner_knows_the_capacities_of_the_service_tables() -> None:
    assert {field.name for field in fields(Capacities)} == set(maps.SERVICE_TABLES)


@pytest.mark.parametrize("family", [4, 6])
def test_entries_are_described_of_all_maps_but_those_that_stay_with_their_programs(family: int) -> None:
    every = {*maps.FAMILY_MAPS, *maps.SHARED_MAPS}
    assert every - maps.entries(family).keys() == {"programs", "predecessor", "schema"}


def test_programs_are_those_of_the_sources() -> None:
    text = source("pod.c", "uplink.c")
    assert re.findall(r"^int (\w+)\(struct __sk_buff \*\w+\)$", text, re.MULTILINE) == list(programs.PROGRAMS)
    names = re.findall(r"^int (\w+)\(struct bpf_sock_addr \*\w+\)$", source("cgroup.c"), re.MULTILINE)
    assert set(names) == set(programs.SOCKET_PROGRAMS[4])
    assert {name for name in names if not name.endswith("_mapped")} == set(programs.SOCKET_PROGRAMS[6])
    assert {index.name.lower() for index in ProgramIndex} <= set(programs.PROGRAMS)
