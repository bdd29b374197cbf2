"""The networks of the cluster. Packets to them can bypass the host's stack: it would not have masqueraded them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Self

from kproxy_ebpf.contract.scalars import U32
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.packing import codec

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
Places = dict[Network, bool]
"""Networks of one family; False for parts that are not the pods'."""

_SOME_VIPS = 64


class PrefixSet:
    """Networks as a set that answers quickly for thousands of addresses. The longest prefix decides."""

    def __init__(self, places: Places) -> None:
        by_shift: dict[int, dict[int, bool]] = {}
        for network in sorted(places, key=lambda each: -each.prefixlen):
            shift = network.max_prefixlen - network.prefixlen
            by_shift.setdefault(shift, {})[int(network.network_address) >> shift] = places[network]
        self._by_shift = by_shift

    def covers(self, address: bytes) -> bool:
        """True if a packed address is in the cluster."""
        number = int.from_bytes(address, "big")
        for shift, heads in self._by_shift.items():
            if number >> shift in heads:
                return heads[number >> shift]
        return False


class ClusterTable:
    """The programs' table of one family; as a context manager. Raises OSError where the pin can't be opened."""

    def __init__(self, generation: Generation, family: int) -> None:
        self._map, self._family = generation.map("cluster", family), family

    def read(self) -> Places:
        return {self._network(key): bool(U32.unpack(value)[0]) for key, value in self._map.items()}

    def write(self, places: Places) -> None:
        """Raises MapFullError."""
        for network, is_pods in places.items():
            self._map.update(_key(network), U32.pack(is_pods))

    def remove(self, networks: Iterable[Network]) -> None:
        for network in networks:
            self._map.delete(_key(network))

    def _network(self, key: bytes) -> Network:
        prefix_bits, address = codec(self._family).cluster_key.unpack(key)
        return ip_network((address, prefix_bits))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()


def some_vips(generation: Generation, family: int) -> list[Address]:
    """Some of the frontends' addresses: a few show which networks are the Services'. Raises OSError."""
    unpack = codec(family).frontend_key.unpack
    with generation.map("frontends", family) as frontends:
        return [ip_address(unpack(key)[0]) for key, _ in islice(frontends.items(), _SOME_VIPS)]


def _key(network: Network) -> bytes:
    return codec(network.version).cluster_key.pack(network.prefixlen, network.network_address.packed)
