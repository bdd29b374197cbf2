"""Between the planner's tuples and the maps' bytes.

contract.layouts says where the fields are. ctypes would be too slow for 200,000 backends or a million flows, so
`packer` makes one struct format of those that are wanted. A port in it is a number in network byte order: htons, ntohs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from ctypes import Array, Structure, sizeof
from dataclasses import dataclass
from functools import cache
from socket import htons, ntohs
from struct import Struct
from typing import Any

from kproxy_ebpf.contract.fields import fields_of
from kproxy_ebpf.contract.layouts import Direction, layouts
from kproxy_ebpf.model.flows import FlowTuple
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, SourceRangeKey

_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


def packer(layout: type[Structure], *names: str) -> Struct:
    """These fields of a layout, such as `state`, or `to.source` within a structure; all else of it is padding.

    An array is so many bytes, any other field a number. Raises ValueError where there is no such field, or where fields
    are named in another order than they stand in.
    """
    known, format_, at = {field.name: field for field in fields_of(layout)}, "=", 0
    for name in names:
        if name not in known or known[name].offset < at:
            raise ValueError(f"{layout.__name__} has no field {name} behind those that are named before it")
        _, offset, type_ = known[name]
        format_ += "x" * (offset - at) + _code(type_)
        at = offset + sizeof(type_)
    return Struct(format_ + "x" * (sizeof(layout) - at))


def _code(type_: Any) -> str:
    return f"{sizeof(type_)}s" if issubclass(type_, Array) else _CODES[sizeof(type_)]


TUPLE = ("source", "destination", "source_port_be", "destination_port_be", "protocol", "direction")

"""The fields of Layouts.Tuple, in their order."""

_U32_BITS = 32
_FRONTEND = packer(layouts(4).Frontend, *Frontend._fields)


@dataclass(frozen=True, slots=True)
class Codec:
    """The packers of one address family."""

    frontend_key: Struct
    backend: Struct
    source_range_key: Struct
    flow_key: Struct
    cluster_key: Struct

    def pack_frontends(self, entries: dict[FrontendKey, Frontend]) -> tuple[bytes, bytes]:
        """Packed keys and packed values, in the same order."""
        return self.pack_frontend_keys(entries), b"".join(_FRONTEND.pack(*frontend) for frontend in entries.values())

    def pack_frontend_keys(self, keys: Iterable[FrontendKey]) -> bytes:
        pack = self.frontend_key.pack
        return b"".join(pack(address, htons(port), protocol) for address, port, protocol in keys)

    def unpack_frontends(self, keys: bytes, values: bytes) -> dict[FrontendKey, Frontend]:
        unpacked = self.frontend_key.iter_unpack(keys)
        return {
            FrontendKey(address, ntohs(port), protocol): frontend
            for (address, port, protocol), frontend in zip(unpacked, unpack_frontend_values(values), strict=True)
        }

    def pack_backend(self, backend: Backend) -> bytes:
        return self.backend.pack(backend.address, htons(backend.port), *backend[2:])

    def unpack_backend(self, value: bytes) -> Backend:
        address, port, *others = self.backend.unpack_from(value)
        return Backend(address, ntohs(port), *others)

    def pack_source_ranges(self, keys: Iterable[SourceRangeKey]) -> bytes:
        pack = self.source_range_key.pack
        return b"".join(pack(_U32_BITS + bits, service_id, network) for service_id, network, bits in keys)

    def unpack_source_ranges(self, keys: bytes) -> set[SourceRangeKey]:
        return {
            SourceRangeKey(service_id, network, bits - _U32_BITS)
            for bits, service_id, network in self.source_range_key.iter_unpack(keys)
        }


def unpack_frontend_values(values: bytes) -> Iterator[Frontend]:
    """A frontend's value is the same in both families."""
    return (Frontend(*fields) for fields in _FRONTEND.iter_unpack(values))


@cache
def codec(family: int) -> Codec:
    """The packers for `family` (4 or 6)."""
    these = layouts(family)
    return Codec(
        frontend_key=packer(these.FrontendKey, "address", "port_be", "protocol"),
        backend=packer(these.Backend, "address", "port_be", "state", "flags", "epoch", "service_id"),
        source_range_key=packer(these.SourceRangeKey, "prefix_bits", "service_id", "client"),
        flow_key=packer(these.Tuple, *TUPLE),
        cluster_key=packer(these.ClusterKey, "prefix_bits", "address"),
    )


def flow_key(family: int, tuple_: FlowTuple) -> bytes:
    """The packed key of the entry for packets of `tuple_`."""
    return codec(family).flow_key.pack(*tuple_fields(tuple_))


def tuple_fields(tuple_: FlowTuple) -> tuple[bytes, bytes, int, int, int, int]:
    """What stands in the fields TUPLE."""
    ports = htons(tuple_.source_port), htons(tuple_.destination_port)
    return tuple_.source, tuple_.destination, *ports, tuple_.protocol, tuple_.direction


def flow_tuple(source: bytes, destination: bytes, source_port: int, destination_port: int, *others: int) -> FlowTuple:
    """The tuple whose fields TUPLE these are."""
    protocol, direction = others
    return FlowTuple(source, ntohs(source_port), destination, ntohs(destination_port), protocol, Direction(direction))


def now_seconds() -> int:
    """The programs' clock."""
    return int(time.clock_gettime(time.CLOCK_MONOTONIC))
