"""The tables of links and of pods' addresses. They are kept together: links are written before the addresses that point
at them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Self

from kproxy_ebpf.contract.layouts import Pod
from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.datapath.forwarding.pod_addresses import Port
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.packing import packer
from kproxy_ebpf.datapath.maps.pod_links import LinkFacts, PodLinkTable

_POD = packer(Pod, "ifindex", "mac")


class PodTable:
    """As a context manager. Raises OSError where pins can't be opened."""

    def __init__(self, generation: Generation) -> None:
        with ExitStack() as stack:
            self._links = {family: stack.enter_context(PodLinkTable(generation, family)) for family in FAMILIES}
            self._pods = {family: stack.enter_context(generation.map("pods", family)) for family in FAMILIES}
            self._stack = stack.pop_all()

    def read(self) -> dict[int, dict[bytes, int]]:
        """By family, the link of each pod's address."""
        return {
            family: {address: _POD.unpack(value)[0] for address, value in pods.items()}
            for family, pods in self._pods.items()
        }

    def replace(
        self, family: int, facts: Mapping[int, LinkFacts], ports: Mapping[int, Port], addresses: Mapping[bytes, int]
    ) -> None:
        """Make these the links and the addresses of a family. Raises MapFullError, OSError."""
        pods = self._pods[family]
        wanted = {address: _POD.pack(ifindex, ports[ifindex].mac) for address, ifindex in addresses.items()}
        present = dict(pods.items())
        for address in present.keys() - wanted.keys():
            pods.delete(address)
        self._links[family].tell(facts)
        for address, value in wanted.items():
            if present.get(address) != value:
                pods.update(address, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
