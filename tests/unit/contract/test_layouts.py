"""Both halves of the contract, byte for byte: a field, an enum or a value on one side only fails here."""

from __future__ import annotations

import ctypes
import re
import subprocess
from enum import IntEnum, IntFlag
from functools import cache
from pathlib import Path

import pytest

from hack.contract import C_ONLY, HEADERS, TARGET, camel, declarations, python
from kproxy_ebpf.contract import layouts as contract
from kproxy_ebpf.contract.scalars import address_bytes, be16
from kproxy_ebpf.datapath.generations.sources import source_folder

SOURCES = source_folder()

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_STRUCT = re.compile(r"struct (\w+) \{(.*?)\};", re.DOTALL)
_ENUM = re.compile(r"enum (\w+) \{(.*?)\};", re.DOTALL)
_FIELD = re.compile(r"(\w+)(?:\[[^\]]*\])?;")
_ENUMERATOR = re.compile(r"(\w+)\s*=")

PREFIXES = {
    "direction": "",
    "verdict": "VERDICT_",
    "way": "WAY_",
    "frontend_flags": "FRONTEND_",
    "backend_state": "BACKEND_",
    "backend_flags": "BACKEND_",
    "flow_state": "FLOW_",
    "flow_flags": "FLOW_",
    "timeout_seconds": "TIMEOUT_",
    "fragment_flags": "FRAGMENT_",
    "switches": "SWITCH_",
    "events_level": "EVENTS_",
    "program_index": "PROGRAM_",
    "predecessor_index": "PREDECESSOR_",
}


def declared(pattern: re.Pattern[str], member: re.Pattern[str]) -> dict[str, list[str]]:
    text = _COMMENT.sub("", "".join((SOURCES / header).read_text() for header in HEADERS))
    return {name: member.findall(body) for name, body in pattern.findall(text) if name not in C_ONLY}


STRUCTS, C_ENUMS = declared(_STRUCT, _FIELD), declared(_ENUM, _ENUMERATOR)


@cache
def measured(words: int, folder: Path) -> dict[str, int]:
    """What the C compiler says of every struct, field, enumerator and of the numbers."""
    lines = [f'P("{name}", {name});' for name in ("SCHEMA_BYTES",)]
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


def test_the_python_half_is_what_the_headers_make() -> None:
    assert TARGET.read_text() == python(declarations(SOURCES)), "run make contract"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", STRUCTS)
def test_structures(name: str, family: int, folder: Path) -> None:
    c = measured(address_bytes(family) // 4, folder)
    twin = getattr(contract.layouts(family), camel(name))
    fields = [field[0] for field in twin._fields_]
    assert fields == STRUCTS[name]
    assert ctypes.sizeof(twin) == c[name]
    for field in fields:
        descriptor = getattr(twin, field)
        assert (descriptor.offset, descriptor.size) == (c[f"{name}.{field}"], c[f"{name}.{field}#"]), field


def test_no_structure_is_missing_or_python_only() -> None:
    expected = {camel(name) for name in STRUCTS}
    assert contract.Layouts.__dataclass_fields__.keys() - {"family"} == expected
    assert {name for name, value in vars(contract).items() if _is_structure(value)} <= expected


def test_port_fields_are_in_network_byte_order() -> None:
    for name, fields in STRUCTS.items():
        twin = getattr(contract.layouts(6), camel(name))
        for field, type_ in ((field[0], field[1]) for field in twin._fields_):
            assert field.endswith("_be") == (type_ is be16), f"{name}.{field}"
        assert fields


@pytest.mark.parametrize("name", C_ENUMS)
def test_enums(name: str, folder: Path) -> None:
    is_table = name == "timeout_seconds"  # values that repeat make no enum
    twin = getattr(contract, name.upper() if is_table else camel(name))
    ours = dict(twin) if is_table else {member.name: member.value for member in twin}
    c = measured(1, folder)
    counts = [label for label in C_ENUMS[name] if label.endswith("_COUNT")]
    theirs = {label.removeprefix(PREFIXES[name]): c[label] for label in C_ENUMS[name] if label not in counts}
    assert ours == theirs
    assert [c[count] for count in counts] == [len(ours)] * len(counts)


def test_no_enum_is_missing_or_python_only() -> None:
    assert PREFIXES.keys() == C_ENUMS.keys()
    ours = {name for name, value in vars(contract).items() if _is_enum(value)}
    assert ours == {camel(name) for name in C_ENUMS} - {"TimeoutSeconds"}


def test_flags_are_those_of_single_bits() -> None:
    flags = {name for name, value in vars(contract).items() if _is_enum(value) and issubclass(value, IntFlag)}
    assert flags == {"FrontendFlags", "BackendFlags", "FlowFlags", "FragmentFlags", "Switches"}


def test_numbers(folder: Path) -> None:
    c = measured(1, folder)
    assert c["SCHEMA_BYTES"] == contract.SCHEMA_BYTES


@pytest.mark.parametrize(
    "declaration",
    ["struct odd {\n\t__u32 bits : 3;\n};\n", "struct odd {\n\t__u32 one, two;\n};\n", "enum odd {\n\tODD_ONE,\n};\n"],
    ids=["bit-field", "two at once", "no value"],
)
def test_what_the_generator_does_not_understand_it_refuses(declaration: str, tmp_path: Path) -> None:
    for header in HEADERS:
        (tmp_path / header).parent.mkdir(exist_ok=True)
        (tmp_path / header).write_text(declaration)
    with pytest.raises(ValueError, match=r"odd: .* is not understood"):
        declarations(tmp_path)


def _is_structure(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, ctypes.Structure) and value is not ctypes.Structure


def _is_enum(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, IntEnum | IntFlag) and len(value) > 0
