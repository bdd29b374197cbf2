"""Both halves of the contract, byte for byte: a field, an enum or a value on one side only fails here."""

from __future__ import annotations

import ctypes
import re
import subprocess
from enum import IntEnum, IntFlag
from functools import cache
from pathlib import Path

import pytest

from kproxy_ebpf.contract import layouts as contract
from kproxy_ebpf.contract import maps, programs
from kproxy_ebpf.datapath.generations.sources import source_folder

SOURCES = source_folder()
HEADERS = ("contract.h", "programs.h")
C_ONLY = {"tail_argument"}  # how programs hand on to one another

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_STRUCT = re.compile(r"struct (\w+) \{(.*?)\};", re.DOTALL)
_ENUM = re.compile(r"enum (\w+) \{(.*?)\};", re.DOTALL)
_FIELD = re.compile(r"(\w+)(?:\[[^\]]*\])?;")
_ENUMERATOR = re.compile(r"(\w+)\s*=")

ENUMS: dict[str, tuple[type[IntEnum], str]] = {
    "direction": (contract.Direction, ""),
    "verdict": (contract.Verdict, "VERDICT_"),
    "frontend_flags": (contract.FrontendFlags, "FRONTEND_"),  # type: ignore[dict-item]  # IntFlag counts as well
    "backend_state": (contract.BackendState, "BACKEND_"),
    "backend_flags": (contract.BackendFlags, "BACKEND_"),  # type: ignore[dict-item]
    "flow_state": (contract.FlowState, "FLOW_"),
    "flow_flags": (contract.FlowFlags, "FLOW_"),  # type: ignore[dict-item]
    "events_level": (contract.EventsLevel, "EVENTS_"),
    "way": (contract.Way, "WAY_"),
    "settings_switches": (contract.Switches, "SWITCH_"),  # type: ignore[dict-item]
    "tail_program": (programs.ProgramIndex, "PROGRAM_"),
    "predecessor_program": (programs.PredecessorIndex, "PREDECESSOR_"),
}


def declared(pattern: re.Pattern[str], member: re.Pattern[str]) -> dict[str, list[str]]:
    text = _COMMENT.sub("", "".join((SOURCES / header).read_text() for header in HEADERS))
    return {name: member.findall(body) for name, body in pattern.findall(text)}


STRUCTS = {name: fields for name, fields in declared(_STRUCT, _FIELD).items() if name != "address"}
C_ENUMS = {name: labels for name, labels in declared(_ENUM, _ENUMERATOR).items() if name not in C_ONLY}


@cache
def measured(words: int, folder: Path) -> dict[str, int]:
    """What the C compiler says of every struct, field, enumerator and of SCHEMA_BYTES."""
    lines = ['P("SCHEMA_BYTES", SCHEMA_BYTES);']
    for struct, fields in STRUCTS.items():
        lines.append(f'P("{struct}", sizeof(struct {struct}));')
        for field in fields:
            lines.append(f'P("{struct}.{field}", __builtin_offsetof(struct {struct}, {field}));')
            lines.append(f'P("{struct}.{field}#", sizeof(((struct {struct} *)0)->{field}));')
    lines += [f'P("{name}", {name});' for names in C_ENUMS.values() for name in names]
    program = folder / f"contract{words}.c"
    program.write_text(
        f"#include <stdio.h>\n#define ADDRESS_WORDS {words}\n"
        + "".join(f'#include "{SOURCES / header}"\n' for header in HEADERS)
        + '#define P(name, value) printf("%s %ld\\n", name, (long)(value))\n'
        "int main(void) {\n" + "\n".join(lines) + "\n}\n"
    )
    binary = program.with_suffix("")
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", binary, program], check=True)
    output = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


def python_struct(name: str, family: int) -> type[ctypes.Structure]:
    camel = "".join(part.capitalize() for part in name.split("_"))
    found = getattr(contract.layouts(family), camel, None) or getattr(contract, camel, None)
    assert found is not None, f"contract.py lacks struct {name}"
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", STRUCTS)
def test_structures(name: str, family: int, folder: Path) -> None:
    c = measured(contract.address_bytes(family) // 4, folder)
    twin = python_struct(name, family)
    fields = [field[0] for field in twin._fields_]
    assert fields == STRUCTS[name]
    assert ctypes.sizeof(twin) == c[name]
    for field in fields:
        descriptor = getattr(twin, field)
        assert (descriptor.offset, descriptor.size) == (c[f"{name}.{field}"], c[f"{name}.{field}#"]), field


@pytest.mark.parametrize("family", [4, 6])
def test_no_structure_is_python_only(family: int) -> None:
    ours = {name for name, value in vars(contract).items() if _is_structure(value)}
    ours |= {name for name in contract.Layouts.__dataclass_fields__ if name != "family"}
    assert ours == {"".join(part.capitalize() for part in name.split("_")) for name in STRUCTS}


def test_port_fields_are_in_network_byte_order() -> None:
    for name, fields in STRUCTS.items():
        twin = python_struct(name, 6)
        for field, type_ in ((field[0], field[1]) for field in twin._fields_):
            assert field.endswith("_be") == (type_ is contract.be16), f"{name}.{field}"
        assert fields


@pytest.mark.parametrize("name", C_ENUMS)
def test_enums(name: str, folder: Path) -> None:
    twin, prefix = ENUMS[name]
    c = measured(1, folder)
    theirs = {label.removeprefix(prefix): c[label] for label in C_ENUMS[name] if not label.endswith("_COUNT")}
    assert {member.name: member.value for member in twin} == theirs
    for count in (label for label in C_ENUMS[name] if label.endswith("_COUNT")):
        assert c[count] == len(twin)


def test_no_enum_is_python_only() -> None:
    assert ENUMS.keys() == C_ENUMS.keys()
    known = {twin for twin, _ in ENUMS.values()} | {programs.CgroupHook}  # that one is the kernel's
    declared = [*vars(contract).values(), *vars(programs).values()]
    assert {value for value in declared if _is_enum(value)} == known


def test_schema(folder: Path) -> None:
    assert measured(1, folder)["SCHEMA_BYTES"] == contract.SCHEMA_BYTES


@pytest.mark.parametrize("family", [4, 6])
def test_entries_are_described_of_all_maps_but_those_that_stay_with_their_programs(family: int) -> None:
    every = {*maps.FAMILY_MAPS, *maps.SHARED_MAPS}
    assert every - maps.entries(family).keys() == {"programs", "predecessor", "schema"}


def test_programs_and_maps_are_those_of_the_sources() -> None:
    text = _COMMENT.sub("", "".join((SOURCES / name).read_text() for name in ("pod.c", "uplink.h")))
    assert re.findall(r"^int (\w+)\(struct __sk_buff \*\w+\)$", text, re.MULTILINE) == list(programs.PROGRAMS)
    text = _COMMENT.sub("", (SOURCES / "socket.h").read_text())
    names = re.findall(r"^int (\w+)\(struct bpf_sock_addr \*\w+\)$", text, re.MULTILINE)
    assert set(names) == set(programs.SOCKET_PROGRAMS[4])
    assert {name for name in names if not name.endswith("_mapped")} == set(programs.SOCKET_PROGRAMS[6])
    assert set(re.findall(r"^SOCKET_STORAGE\((\w+),", text, re.MULTILINE)) == set(maps.STORAGES)
    pins = (SOURCES / "maps.h").read_text()
    assert set(re.findall(r'FAMILY_PIN\("(\w+)"\)', pins)) == set(maps.FAMILY_MAPS) - set(maps.STORAGES)
    assert set(re.findall(r'SHARED_PIN\("(\w+)"\)', pins)) == set(maps.SHARED_MAPS)
    assert {index.name.lower() for index in programs.ProgramIndex} <= set(programs.PROGRAMS)


def _is_structure(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, ctypes.Structure) and value is not ctypes.Structure


def _is_enum(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, IntEnum | IntFlag) and len(value) > 0
