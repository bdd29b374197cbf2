"""Services that claim what an older one has: the newer one's owner is told once each time that it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import structlog

from kproxy_ebpf.model.services import Protocol, Service, ServiceName, text_of
from kproxy_ebpf.plan.services.claims import Conflict

log = structlog.get_logger(__name__)


class Conflicts:
    """`warn` takes the loser and a sentence (for a Kubernetes Event)."""

    def __init__(self, warn: Callable[[Service, str], None]) -> None:
        self._warn = warn
        self._known: frozenset[Conflict] = frozenset()

    def tell_new(self, conflicts: Iterable[Conflict], services: Mapping[ServiceName, Service]) -> None:
        """Log and warn of those that were not there at the last call. `conflicts` are all that there are now."""
        now = frozenset(conflicts)
        for conflict in sorted(now - self._known):
            loser = services.get(conflict.loser)
            if loser is not None:  # else it is about to go, and its claim with it
                log.warning(
                    "an older Service has what this one claims", service=str(loser.key), reason=sentence(conflict)
                )
                self._warn(loser, sentence(conflict))
        self._known = now


def sentence(conflict: Conflict) -> str:
    """Says for people which Service has the frontend, and which other one claims it."""
    address, port, protocol = conflict.key
    frontend = f"{text_of(address)}:{port}/{Protocol(protocol).name}" if protocol else text_of(address)
    return f"{frontend} is {conflict.winner}'s, and {conflict.loser} wants it too"
