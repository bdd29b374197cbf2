"""Two Services that claim one frontend: the older has it, the younger waits until it is given up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kproxy_ebpf.model.service_tables import FrontendKey
from kproxy_ebpf.model.services import ServiceName


class Conflict(NamedTuple):
    """`loser` wants `key`, which `winner` has because it is older."""

    family: int
    key: FrontendKey
    winner: ServiceName
    loser: ServiceName


def seniority(created: str, name: ServiceName) -> tuple[bool, str, ServiceName]:
    """Sorts the older first: by creation (RFC 3339; unknown counts as youngest), then by namespace and name."""
    return not created, created, name


class Claims:
    """Who waits for which frontend. Empty in a cluster without contradictions."""

    def __init__(self) -> None:
        self._waiting: dict[FrontendKey, set[ServiceName]] = {}
        self._disturbed: set[ServiceName] = set()

    def wait(self, name: ServiceName, keys: set[FrontendKey]) -> None:
        """`name` waits for `keys` and for no others."""
        if not self._waiting and not keys:
            return
        for key in [key for key, names in self._waiting.items() if name in names and key not in keys]:
            self._waiting[key].remove(name)
            if not self._waiting[key]:
                del self._waiting[key]
        for key in keys:
            self._waiting.setdefault(key, set()).add(name)

    def given_up(self, keys: Iterable[FrontendKey]) -> None:
        """The holder gave `keys` up, or is younger than it was: the Services that wait for them may win them."""
        if self._waiting:
            for key in keys:
                self._disturbed |= self._waiting.get(key, set())

    def disturb(self, name: ServiceName) -> None:
        """`name` is about to lose a frontend to an older Service."""
        self._disturbed.add(name)

    def take_disturbed(self) -> set[ServiceName]:
        disturbed, self._disturbed = self._disturbed, set()
        return disturbed

    def waiting(self) -> Iterator[tuple[FrontendKey, ServiceName]]:
        """Each key with each Service that waits for it."""
        for key, names in self._waiting.items():
            for name in sorted(names):
                yield key, name
