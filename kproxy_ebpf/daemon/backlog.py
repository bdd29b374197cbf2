"""Keeps what the source says until the reconciler listens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kproxy_ebpf.model.snapshot import Event

Emit = Callable[[Sequence[Event]], None]


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
