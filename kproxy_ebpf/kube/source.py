"""Where the cluster's state comes from: the API server here, a folder in kube/manifests.py. Same events from both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from kproxy_ebpf.kube import wire
from kproxy_ebpf.kube.addresses import Refusal
from kproxy_ebpf.kube.kinds import common
from kproxy_ebpf.kube.reflector import Emit, Reflector, Requests, Timing
from kproxy_ebpf.kube.stream import Change, Resource
from kproxy_ebpf.model.services import EndpointSlice, Node, Service
from kproxy_ebpf.model.snapshot import Event, Kind, ObjectRef, Refused, Removed, Synced, Upserted

Object_ = TypeVar("Object_", Service, EndpointSlice, Node)


class Source(Protocol):
    """Yields the cluster's state and every change of it.

    `run` emits batches of events until it is cancelled; each Kind's Synced follows all that existed at the start. It
    raises what `emit` raises, and ClusterError only when going on makes no sense.
    """

    @property
    def connected(self) -> bool:
        """Whether the newest state can be seen at this moment."""

    @property
    def last_error(self) -> str:
        """Why it can't, for people; "" while it can."""

    async def run(self, emit: Callable[[Sequence[Event]], None]) -> None: ...


def services(proxy_name: str = "") -> Resource[Service]:
    """With a proxy name of our own the server can't select ("no label or ours"), so kube/parse.py does."""
    selector = () if proxy_name else (("labelSelector", f"!{common.LABEL_PROXY_NAME}"),)
    return Resource(
        "/api/v1/services", wire.ServiceObject, lambda obj: common.service_of(obj, proxy_name), query=selector
    )


def slices() -> Resource[EndpointSlice]:
    return Resource(
        "/apis/discovery.k8s.io/v1/endpointslices",
        wire.SliceObject,
        common.slice_of,
        query=(("labelSelector", f"!{common.LABEL_HEADLESS}"),),
    )


def node(name: str) -> Resource[Node]:
    """The one Node. Optional: topology and health can do without it."""
    return Resource(
        "/api/v1/nodes",
        wire.NodeObject,
        common.node_of,
        query=(("fieldSelector", f"metadata.name={name}"),),
        optional=True,
    )


class ApiSource:
    """The API server as a Source: Services, EndpointSlices and the own Node. `proxy_name`: see common.parse_service."""

    def __init__(self, client: Requests, node_name: str, proxy_name: str = "", *, timing: Timing | None = None) -> None:
        self._client, self._timing = client, timing
        self._node_name, self._proxy_name = node_name, proxy_name
        self._reflectors: list[Reflector[Service] | Reflector[EndpointSlice] | Reflector[Node]] = []

    @property
    def connected(self) -> bool:
        needed = [each for each in self._reflectors if not each.optional]
        return bool(needed) and all(each.connected for each in needed)

    @property
    def last_error(self) -> str:
        return next((reflector.last_error for reflector in self._reflectors if reflector.last_error), "")

    async def run(self, emit: Callable[[Sequence[Event]], None]) -> None:
        """Watch until cancelled; see Source."""

        def reflector(kind: Kind, resource: Resource[Object_]) -> Reflector[Object_]:
            return Reflector(self._client, resource, events_to(emit, kind), timing=self._timing)

        self._reflectors = [
            reflector(Kind.SERVICE, services(self._proxy_name)),
            reflector(Kind.ENDPOINT_SLICE, slices()),
            reflector(Kind.NODE, node(self._node_name)),
        ]
        async with asyncio.TaskGroup() as tasks:
            for each in self._reflectors:
                tasks.create_task(each.run())


class ConfigMapSource:
    """One ConfigMap's data, for settings."""

    def __init__(self, client: Requests, namespace: str, name: str, *, timing: Timing | None = None) -> None:
        resource = Resource(
            f"/api/v1/namespaces/{namespace}/configmaps",
            wire.ConfigMapObject,
            common.config_map_of,
            query=(("fieldSelector", f"metadata.name={name}"),),
        )
        self._emit: Callable[[dict[str, str] | None], None] = lambda _: None
        self._reflector = Reflector(client, resource, self._changed, timing=timing)
        self._exists = False

    @property
    def connected(self) -> bool:
        return self._reflector.connected

    @property
    def last_error(self) -> str:
        return self._reflector.last_error

    async def run(self, emit: Callable[[dict[str, str] | None], None]) -> None:
        """Emit the data at the start and at every change, None while there is no such ConfigMap; until cancelled."""
        self._emit = emit
        await self._reflector.run()

    def _changed(self, changes: list[Change[dict[str, str]]], complete: bool) -> None:
        for change in changes:
            if not isinstance(change.object, Refusal):  # the API admits none that would be
                self._exists = change.object is not None
                self._emit(change.object)
        if complete and not self._exists:
            self._emit(None)


def events_to(emit: Callable[[Sequence[Event]], None], kind: Kind) -> Emit[Object_]:
    """Turns changes of one kind into events."""

    def forward(changes: list[Change[Object_]], complete: bool) -> None:
        events: list[Event] = [_event(kind, change) for change in changes]
        if complete:
            events.append(Synced(kind))
        emit(events)

    return forward


def _event(kind: Kind, change: Change[Object_]) -> Event:
    ref = ObjectRef(kind, change.namespace, change.name, change.uid)
    if change.object is None:
        return Removed(ref)
    if isinstance(change.object, Refusal):
        return Refused(ref, str(change.object))
    return Upserted(ref, change.object)
