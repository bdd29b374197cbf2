"""Mode off: Services are hidden from the reconciler, as if all had been deleted.

That is exactly the drain that is wanted: no new connection is translated, TCP connections go on while their endpoint
lives, and what no frontend claims goes to kube-proxy untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kproxy_ebpf.model.snapshot import Event, Kind, ObjectRef, Refused, Removed, Upserted

Emit = Callable[[Sequence[Event]], None]


class Gate:
    """Passes a source's events on to `emit`; shut, it lets no Service through and remembers them for later."""

    def __init__(self, emit: Emit, *, is_open: bool = True) -> None:
        self._emit = emit
        self._services: dict[tuple[str, str], Upserted] = {}
        self.is_open = is_open

    def feed(self, events: Sequence[Event]) -> None:
        """Take events from the source."""
        for event in events:
            self._remember(event)
        passing = events if self.is_open else [event for event in events if not _shows_service(event)]
        self._emit(passing)

    def set(self, is_open: bool) -> None:
        """Open or shut: the reconciler sees all Services come or go."""
        if is_open == self.is_open:
            return
        self.is_open = is_open
        known = self._services.values()
        self._emit(list(known) if is_open else [Removed(event.ref) for event in known])

    def _remember(self, event: Event) -> None:
        match event:
            case Upserted(ObjectRef(kind=Kind.SERVICE, namespace=namespace, name=name)):
                self._services[namespace, name] = event
            case Removed(ref) | Refused(ref, _) if ref.kind is Kind.SERVICE:
                self._services.pop((ref.namespace, ref.name), None)


def _shows_service(event: Event) -> bool:
    return isinstance(event, Upserted) and event.ref.kind is Kind.SERVICE


class Backlog:
    """Keeps a source's events until somebody takes them: the cluster is read while programs are compiled."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._emit: Emit | None = None

    def feed(self, events: Sequence[Event]) -> None:
        """Take events from the source."""
        if self._emit is None:
            self._events.extend(events)
        else:
            self._emit(events)

    def release(self, emit: Emit) -> None:
        """Pass on to `emit` what came so far and all that follows."""
        events, self._events, self._emit = self._events, [], emit
        if events:
            emit(events)
