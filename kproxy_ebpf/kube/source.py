"""What a source of the cluster's state offers, and the API server as one. The other is in kube/manifests.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from kproxy_ebpf.errors import ConfigError, SettingsAbsentError
from kproxy_ebpf.kube.addresses import Refusal
from kproxy_ebpf.kube.kinds import KINDS, Kinds
from kproxy_ebpf.kube.kinds.common import ApiKind, Scope
from kproxy_ebpf.kube.kinds.config_map import config_map
from kproxy_ebpf.kube.reflector import Emit, ReadRequests, Reflector, WatchTiming
from kproxy_ebpf.kube.stream import Change
from kproxy_ebpf.model.snapshot import Event, ObjectRef, Removed, Synced, Upserted

T = TypeVar("T")
SettingsState = Mapping[str, str] | ConfigError
"""A ConfigMap's data, or that it is absent or unreadable."""


class ClusterSource(Protocol):
    """Yields the cluster's state and every change of it.

    `run` emits batches of events until it is cancelled; each Kind's Synced follows all that existed at the start. It
    raises what `emit` raises, and ClusterError only when going on makes no sense.
    """

    @property
    def connected(self) -> bool:
        """True while the newest state can be seen."""

    @property
    def last_error(self) -> str:
        """Why the newest state can't be seen, for people; "" while it can."""

    async def run(self, emit: Callable[[Sequence[Event]], None]) -> None: ...


class ApiSource:
    """The API server as a ClusterSource: every kind of `kinds`, watched as `scope` sees it."""

    def __init__(
        self, client: ReadRequests, scope: Scope, *, kinds: Kinds = KINDS, timing: WatchTiming | None = None
    ) -> None:
        self._client, self._scope, self._kinds, self._timing = client, scope, kinds, timing
        self._reflectors: list[Reflector[Any]] = []

    @property
    def connected(self) -> bool:
        needed = [each for each in self._reflectors if not each.optional]
        return bool(needed) and all(each.connected for each in needed)

    @property
    def last_error(self) -> str:
        return next((reflector.last_error for reflector in self._reflectors if reflector.last_error), "")

    async def run(self, emit: Callable[[Sequence[Event]], None]) -> None:
        """Watch until cancelled; see ClusterSource."""
        self._reflectors = [
            Reflector(self._client, kind.resource(self._scope), events_to(emit, kind), timing=self._timing)
            for kind in self._kinds.values()
        ]
        async with asyncio.TaskGroup() as tasks:
            for each in self._reflectors:
                tasks.create_task(each.run())


class ConfigMapSource:
    """One ConfigMap, which holds the settings."""

    def __init__(self, client: ReadRequests, namespace: str, name: str, *, timing: WatchTiming | None = None) -> None:
        self._name = f"{namespace}/{name}"
        self._emit: Callable[[SettingsState], None] = lambda _: None
        self._reflector = Reflector(client, config_map(namespace, name), self._changed, timing=timing)
        self._exists = False

    @property
    def connected(self) -> bool:
        return self._reflector.connected

    @property
    def last_error(self) -> str:
        return self._reflector.last_error

    async def run(self, emit: Callable[[SettingsState], None]) -> None:
        """Emit the state at the start and at every change, until cancelled."""
        self._emit = emit
        await self._reflector.run()

    def _changed(self, changes: list[Change[dict[str, str]]], complete: bool) -> None:
        for change in changes:
            self._exists = change.object is not None
            self._emit(self._state(change.object))
        if complete and not self._exists:
            self._emit(self._state(None))

    def _state(self, data: dict[str, str] | Refusal | None) -> SettingsState:
        if data is None:
            return SettingsAbsentError(f"there is no ConfigMap {self._name}: create it, with the mode that is wanted")
        if isinstance(data, Refusal):
            return ConfigError(f"ConfigMap {self._name} can't be read: {data}")
        return data or SettingsAbsentError(f"ConfigMap {self._name} is empty: write down the mode that is wanted")


def events_to(emit: Callable[[Sequence[Event]], None], kind: ApiKind[T]) -> Emit[T]:
    """Turns changes of one kind into events."""

    def forward(changes: list[Change[T]], complete: bool) -> None:
        events: list[Event] = [event for change in changes for event in _events(kind, change)]
        if complete:
            events.append(Synced(kind.kind))
        emit(events)

    return forward


def _events(kind: ApiKind[Any], change: Change[Any]) -> Sequence[Event]:
    ref = ObjectRef(kind.kind, change.namespace, change.name, change.uid)
    if change.object is None:
        return (Removed(ref),)
    if isinstance(change.object, Refusal):
        return kind.refusal(ref, change.object)
    return (Upserted(ref, change.object),)
