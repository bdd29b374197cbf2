"""The layouts of all maps, written down beside the maps, and the conversion of entries from one layout to another.

Each generation holds its layouts in its map `schema`, as JSON: {"flows_v4": {"key": {"source": [0, 4], …}, "value":
{…}}, …}, with offset and size in bytes of each field. Fields of structures within structures have names like
`to.source`; padding is not listed; a plain number is one field without a name. Entries migrate to another layout by
field name, so a name never changes its meaning.
"""

from __future__ import annotations

import json
from ctypes import Structure, sizeof
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kproxy_ebpf.contract.fields import fields_of
from kproxy_ebpf.contract.layouts import SCHEMA_BYTES
from kproxy_ebpf.contract.maps import FAMILIES, FAMILY_MAPS, entries, pinned_name
from kproxy_ebpf.linux.bpf import Map

Fields = dict[str, tuple[int, int]]
"""Offset and size in bytes, by name."""

_FIRST = bytes(4)


@dataclass(frozen=True, slots=True)
class Entry:
    """The layout of one map."""

    key: Fields
    value: Fields


@cache
def own_layouts() -> dict[str, Entry]:
    """The layouts of this version's maps, by the name that they are pinned under."""
    return {
        pinned_name(name, family) if name in FAMILY_MAPS else name: Entry(_fields(key), _fields(value))
        for family in FAMILIES
        for name, (key, value) in entries(family).items()
    }


def write_layouts(generation: Path) -> None:
    """Write this version's layouts down in a generation's folder. Raises OSError."""
    text = json.dumps({name: {"key": entry.key, "value": entry.value} for name, entry in own_layouts().items()})
    with Map.open(generation / "maps/schema") as schema:
        schema.update(_FIRST, text.encode().ljust(SCHEMA_BYTES, b"\0"))


def read_layouts(generation: Path) -> dict[str, Entry]:
    """The layouts of a generation of any version; an empty dict where they can't be read."""
    try:
        with Map.open(generation / "maps/schema") as schema:
            text = (schema.lookup(_FIRST) or b"").rstrip(b"\0")
        return {name: Entry(_read(entry["key"]), _read(entry["value"])) for name, entry in json.loads(text).items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return {}


class Conversion:
    """Turns packed elements of one layout into those of another: a new field is 0, a removed field is dropped."""

    def __init__(self, before: Fields, after: Fields, size_before: int, size_after: int) -> None:
        """Sizes are those of whole elements. Raises ValueError where a field has another size, or is not inside."""
        common = [(before[name], after[name]) for name in after if name in before]
        if any(size != other for (_, size), (_, other) in common):
            raise ValueError("a field has another size")
        if any(offset + size > size_before for offset, size in before.values()):
            raise ValueError("a field is not inside its element")
        self._changes_nothing = before == after and size_before == size_after
        self._sizes = size_before, size_after
        self._moves = [(old + byte, new + byte) for (old, size), (new, _) in common for byte in range(size)]

    def __call__(self, elements: bytes) -> bytes:
        if self._changes_nothing:
            return elements
        size_before, size_after = self._sizes
        converted = bytearray(len(elements) // size_before * size_after)
        for old, new in self._moves:
            converted[new::size_after] = elements[old::size_before]
        return bytes(converted)


def _fields(type_: Any) -> Fields:
    if not issubclass(type_, Structure):
        return {"": (0, sizeof(type_))}
    return {field.name: (field.offset, sizeof(field.type)) for field in fields_of(type_)}


def _read(fields: dict[str, list[int]]) -> Fields:
    return {name: (int(offset), int(size)) for name, (offset, size) in fields.items()}
