"""Which addresses are in the cluster: what goes there past the host's stack, nobody would have masqueraded."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from struct import Struct
from typing import Self

from kproxy_ebpf.datapath.contract import address_bytes
from kproxy_ebpf.datapath.generation import Generation

Network = IPv4Network | IPv6Network

_PREFIX_BITS = Struct("=I")
_VALUE = Struct("=I").pack(1)


class PrefixSet:
    """Networks of one family, to ask for thousands of addresses."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._by_shift: dict[int, set[int]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            self._by_shift.setdefault(shift, set()).add(int(network.network_address) >> shift)

    def covers(self, address: bytes) -> bool:
        """Whether a packed address is in one of the networks."""
        number = int.from_bytes(address, "big")
        return any(number >> shift in heads for shift, heads in self._by_shift.items())


class ClusterTable:
    """The programs' table of one family; as a context manager. Raises OSError where the pin can't be opened."""

    def __init__(self, generation: Generation, family: int) -> None:
        self._map = generation.map("cluster", family)
        self._size = address_bytes(family)

    def read(self) -> set[Network]:
        return {
            ip_network((key[_PREFIX_BITS.size :], _PREFIX_BITS.unpack_from(key)[0])) for key, _ in self._map.items()
        }

    def add(self, networks: Collection[Network]) -> None:
        """Raises MapFullError."""
        for network in networks:
            self._map.update(self._key(network), _VALUE)

    def remove(self, networks: Collection[Network]) -> None:
        for network in networks:
            self._map.delete(self._key(network))

    def _key(self, network: Network) -> bytes:
        return _PREFIX_BITS.pack(network.prefixlen) + network.network_address.packed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()
