"""Between the planner's tuples and the maps' bytes.

contract.layouts() defines the bytes; these packers say the same in struct formats because ctypes is too slow for
200,000 backends (tests/unit/datapath/maps/test_packing.py holds the two together). Ports are in network byte order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from socket import htons, ntohs
from struct import Struct

from kproxy_ebpf.contract.scalars import address_bytes
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, SourceRangeKey

_U32_BITS = 32
_FRONTEND = Struct("=5I")


@dataclass(frozen=True, slots=True)
class Codec:
    """The packers of one address family."""

    frontend_key: Struct
    backend: Struct
    source_range_key: Struct

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
    size = address_bytes(family)
    return Codec(
        frontend_key=Struct(f"={size}sHBx"),
        backend=Struct(f"={size}sHBBII"),
        source_range_key=Struct(f"=II{size}s"),
    )
