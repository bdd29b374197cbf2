"""What is packed and unpacked stands where the ctypes layouts have it."""

from __future__ import annotations

import ctypes
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy_ebpf.contract.fields import fields_of
from kproxy_ebpf.contract.layouts import Direction, Event, Settings, layouts
from kproxy_ebpf.contract.scalars import address_bytes
from kproxy_ebpf.datapath.maps.packing import codec, flow_key, flow_tuple, packer
from kproxy_ebpf.model.flows import FlowTuple
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, SourceRangeKey

U8, U16, U32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
FAMILIES = st.sampled_from([4, 6])


def address(family: int) -> st.SearchStrategy[bytes]:
    size = address_bytes(family)
    return st.binary(min_size=size, max_size=size)


@given(family=FAMILIES, data=st.data())
def test_frontends(family: int, data: st.DataObject) -> None:
    key = data.draw(st.builds(FrontendKey, address(family), U16, U8))
    value = data.draw(st.builds(Frontend, U32, U32, U32, U32, U32))
    keys, values = codec(family).pack_frontends({key: value})
    structures = layouts(family)
    twin, frontend = structures.FrontendKey.from_buffer_copy(keys), structures.Frontend.from_buffer_copy(values)
    assert (bytes(twin.address), twin.port_be, twin.protocol, twin.pad) == (*key, 0)
    assert tuple(getattr(frontend, name) for name in Frontend._fields) == value
    assert codec(family).unpack_frontends(keys, values) == {key: value}


@given(family=FAMILIES, data=st.data())
def test_backends(family: int, data: st.DataObject) -> None:
    backend = data.draw(st.builds(Backend, address(family), U16, U8, U8, U32, U32))
    packed = codec(family).pack_backend(backend)
    twin = layouts(family).Backend.from_buffer_copy(packed)
    assert (bytes(twin.address), twin.port_be, twin.state, twin.flags, twin.epoch, twin.service_id) == backend
    assert bytes(twin) == packed
    assert codec(family).unpack_backend(packed) == backend


@given(family=FAMILIES, data=st.data())
def test_source_ranges(family: int, data: st.DataObject) -> None:
    key = data.draw(st.builds(SourceRangeKey, U32, address(family), st.integers(0, 8 * address_bytes(family))))
    packed = codec(family).pack_source_ranges([key])
    twin = layouts(family).SourceRangeKey.from_buffer_copy(packed)
    assert (twin.service_id, bytes(twin.client), twin.prefix_bits - 32) == key
    assert codec(family).unpack_source_ranges(packed) == {key}


def test_many_at_once() -> None:
    entries = {FrontendKey(bytes([1, 2, 3, i]), i, 6): Frontend(i, i, i, i, i) for i in range(1, 50)}
    assert codec(4).unpack_frontends(*codec(4).pack_frontends(entries)) == entries
    assert codec(4).pack_frontends({}) == (b"", b"")


def test_what_is_no_port_is_refused() -> None:
    with pytest.raises(OverflowError):
        codec(4).pack_frontend_keys([FrontendKey(bytes(4), 65536, 6)])


@given(family=FAMILIES, data=st.data())
def test_flow_keys(family: int, data: st.DataObject) -> None:
    ends = data.draw(st.tuples(address(family), U16, address(family), U16))
    key = FlowTuple(*ends, data.draw(U8), data.draw(st.sampled_from(Direction)))
    packed = flow_key(family, key)
    twin = layouts(family).Tuple.from_buffer_copy(packed)
    assert (bytes(twin.source), twin.source_port_be, bytes(twin.destination), twin.destination_port_be) == ends
    assert (twin.protocol, twin.direction, twin.pad) == (key.protocol, key.direction, 0)
    assert flow_tuple(*codec(family).flow_key.unpack(packed)) == key


@given(family=FAMILIES, data=st.data())
def test_any_fields_of_a_layout(family: int, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from([layouts(family).Flow, layouts(family).PodLink, Event, Settings]))
    element = data.draw(st.binary(min_size=ctypes.sizeof(layout), max_size=ctypes.sizeof(layout)))
    fields = [field for field in fields_of(layout) if data.draw(st.booleans())]
    values = packer(layout, *(field.name for field in fields)).unpack(element)
    for field, value in zip(fields, values, strict=True):
        raw = element[field.offset : field.offset + ctypes.sizeof(field.type)]
        assert value == (raw if isinstance(value, bytes) else int.from_bytes(raw, sys.byteorder)), field.name


def test_what_is_not_named_is_zero() -> None:
    assert packer(Settings, "switches").pack(7) == bytes(Settings(switches=7))
    assert packer(Settings).pack() == bytes(ctypes.sizeof(Settings))


@pytest.mark.parametrize("names", [("epoch", "backend_id"), ("state", "state"), ("pad",), ("other",), ("to",)])
def test_fields_that_are_not_there_or_not_in_order(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=names[-1]):
        packer(layouts(4).Flow, *names)
