"""The fields of a layout, with those of the structures within it."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import Structure
from typing import Any, NamedTuple

PADDING = "pad"


class Field(NamedTuple):
    """`name`: `state`, or `to.source` within a structure. `offset`: in bytes, from the beginning of the whole."""

    name: str
    offset: int
    type: Any


def fields_of(layout: Any, prefix: str = "", base: int = 0) -> Iterator[Field]:
    """All fields but padding, in their order."""
    for name, type_, *_ in layout._fields_:
        offset = base + getattr(layout, name).offset
        if issubclass(type_, Structure):
            yield from fields_of(type_, f"{prefix}{name}.", offset)
        elif name != PADDING:
            yield Field(prefix + name, offset, type_)
