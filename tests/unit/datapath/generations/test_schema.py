"""Elements of one layout become elements of another, by field name."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy_ebpf.contract.maps import entries
from kproxy_ebpf.datapath.generations.schema import Conversion, Entry, Fields, own_layouts

SIZES = {"a": 1, "b": 2, "c": 4, "d": 8, "e": 16}


def placed(names: list[str], gaps: list[int]) -> tuple[Fields, int]:
    """The fields of SIZES in this order with `gaps` between them, and the size of the whole."""
    fields, offset = {}, 0
    for name, gap in zip(names, gaps, strict=False):
        fields[name] = (offset + gap, SIZES[name])
        offset += gap + SIZES[name]
    return fields, offset + 1


layouts = st.builds(
    placed,
    st.lists(st.sampled_from(sorted(SIZES)), unique=True),
    st.lists(st.integers(0, 3), min_size=len(SIZES), max_size=len(SIZES)),
)


@given(layouts, layouts, st.data())
def test_each_field_is_found_again_and_all_others_are_zero(
    before: tuple[Fields, int], after: tuple[Fields, int], data: st.DataObject
) -> None:
    elements = data.draw(st.lists(st.binary(min_size=before[1], max_size=before[1]), max_size=3))
    converted = Conversion(before[0], after[0], before[1], after[1])(b"".join(elements))
    assert len(converted) == len(elements) * after[1]
    if before == after:
        assert converted == b"".join(elements), "padding too"
        return
    for number, element in enumerate(elements):
        new = bytearray(converted[number * after[1] : (number + 1) * after[1]])
        for name, (offset, size) in after[0].items():
            old_offset = before[0].get(name, (None, 0))[0]
            expected = bytes(size) if old_offset is None else element[old_offset : old_offset + size]
            assert new[offset : offset + size] == expected, name
            new[offset : offset + size] = bytes(size)
        assert not any(new)


@pytest.mark.parametrize("fields", [{"a": (0, 2)}, {"a": (8, 1)}, {"other": (7, 2)}], ids=["size", "outside", "beyond"])
def test_what_can_not_be_told(fields: Fields) -> None:
    with pytest.raises(ValueError, match="field"):
        Conversion(fields, {"a": (0, 1)}, 8, 8)


def test_nested_fields_have_the_names_of_both_and_padding_has_none() -> None:
    flow = own_layouts()["flows_v6"]
    assert flow.key["destination_port_be"] == flow.value["to.destination_port_be"] == (34, 2)
    assert not any("pad" in name.split(".") for entry in own_layouts().values() for name in (*entry.key, *entry.value))
    assert own_layouts()["slots_v4"] == Entry({"": (0, 4)}, {"": (0, 4)})
    assert "counters" in own_layouts(), "shared maps have no suffix"


@pytest.mark.parametrize("family", [4, 6])
def test_only_padding_is_left_out(family: int) -> None:
    for name, (key, value) in entries(family).items():
        entry = own_layouts().get(f"{name}_v{family}") or own_layouts()[name]
        for fields, type_ in ((entry.key, key), (entry.value, value)):
            assert sum(size for _, size in fields.values()) == ctypes.sizeof(type_) - padding(type_), name


def padding(type_: Any) -> int:
    if not issubclass(type_, ctypes.Structure):
        return 0
    return sum(ctypes.sizeof(kind) if name == "pad" else padding(kind) for name, kind, *_ in type_._fields_)
