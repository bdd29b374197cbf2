"""The API server as the source of the three kinds, and of the settings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from aiohttp import web
from fake_api import NODES, SERVICES, SLICES, FakeApi, service, slice_

from kproxy_ebpf.kube.client import Client
from kproxy_ebpf.kube.kinds.common import Scope
from kproxy_ebpf.kube.reflector import WatchTiming
from kproxy_ebpf.kube.source import ApiSource, ConfigMapSource
from kproxy_ebpf.model.services import ServiceName
from kproxy_ebpf.model.snapshot import WATCHED_KINDS, Event, Kind, ObjectRef, Refused, Snapshot, Synced, Unreadable

FAST = WatchTiming(backoff_base=0.02, backoff_cap=0.1)
SETTINGS = "/api/v1/namespaces/kube-system/configmaps"


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    fake = await FakeApi().start()
    yield fake
    await fake.stop()


@pytest.fixture
async def client(api, tmp_path) -> AsyncIterator[Client]:
    made = await Client.from_kubeconfig(api.kubeconfig(tmp_path))
    yield made
    await made.aclose()


@pytest.fixture
async def start(client) -> AsyncIterator[Callable[..., Any]]:
    tasks: list[asyncio.Task[None]] = []

    def run(source: Any, emit: Callable[[Any], None]) -> None:
        tasks.append(asyncio.create_task(source.run(emit)))

    yield run
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Told:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.snapshot = Snapshot()

    def __call__(self, events: Sequence[Event]) -> None:
        self.events += events
        for event in events:
            self.snapshot.apply(event)


async def test_the_three_kinds_make_a_snapshot(api, client, start):
    api.put(SERVICES, service("web"))
    api.put(SLICES, slice_("web-1", "web"))
    api.put(SLICES, slice_("bad", "web", ports=[{"port": 0.5}]))
    api.put(SLICES, slice_("half", "web", endpoints=[{"addresses": ["10.0.0.1"]}, {"addresses": ["fd00::1"]}]))
    api.put(NODES, {"metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "a"}}})
    told, source = Told(), ApiSource(client, Scope("node1"), timing=FAST)
    assert not source.connected
    start(source, told)
    await until(lambda: told.snapshot.synced == WATCHED_KINDS)
    assert set(told.snapshot.services) == {ServiceName("default", "web")}
    assert set(told.snapshot.slices[ServiceName("default", "web")]) == {"web-1", "half"}
    assert len(told.snapshot.slices[ServiceName("default", "web")]["half"].endpoints) == 1
    assert told.snapshot.node is not None
    assert told.snapshot.node.zone == "a"
    refused = told.snapshot.refused[Kind.ENDPOINT_SLICE, "default", "bad"]
    assert refused == Refused(
        ObjectRef(Kind.ENDPOINT_SLICE, "default", "bad"),
        "ports[0].port: should be a valid integer, not 0.5",
        Unreadable.ABSENT,
    )
    assert told.snapshot.refused[Kind.ENDPOINT_SLICE, "default", "half"] == Refused(
        ObjectRef(Kind.ENDPOINT_SLICE, "default", "half"),
        "endpoints[1].addresses[0]: 'fd00::1' is not an IPv4 address",
        Unreadable.IN_PART,
    )
    api.put(SLICES, slice_("half", "web", endpoints=[{"addresses": ["10.0.0.1"]}]))
    await until(lambda: (Kind.ENDPOINT_SLICE, "default", "half") not in told.snapshot.refused)
    assert source.connected
    assert source.last_error == ""
    assert api.queries(SLICES)[0]["labelSelector"] == "!service.kubernetes.io/headless"
    assert api.queries(NODES)[0]["fieldSelector"] == "metadata.name=node1"
    api.delete(SERVICES, "default", "web")
    await until(lambda: not told.snapshot.services)


@pytest.mark.parametrize("status", [200, 403])
async def test_without_the_node_the_rest_works(api, client, start, status):
    if status == 403:
        api.answers[NODES] = [lambda _: web.json_response({"message": "nodes is forbidden"}, status=403)] * 1000
    told, source = Told(), ApiSource(client, Scope("node1"), timing=FAST)
    start(source, told)
    await until(lambda: told.snapshot.synced == WATCHED_KINDS and source.connected)
    assert told.snapshot.node is None
    assert told.events.count(Synced(Kind.NODE)) == 1


async def test_forbidden_services_are_never_synced_but_reported(api, client, start):
    api.answers[SERVICES] = [lambda _: web.json_response({"message": "services is forbidden"}, status=403)] * 1000
    told, source = Told(), ApiSource(client, Scope("node1"), timing=FAST)
    start(source, told)
    await until(lambda: {Kind.NODE, Kind.ENDPOINT_SLICE} <= told.snapshot.synced and len(api.queries(SERVICES)) > 3)
    assert Kind.SERVICE not in told.snapshot.synced
    assert not source.connected
    assert source.last_error == "the API server answered 403: services is forbidden"


async def test_settings_follow_the_config_map(api, client, start):
    told: list[str] = []
    start(ConfigMapSource(client, "kube-system", "kproxy", timing=FAST), lambda state: told.append(str(state)))
    absent = "there is no ConfigMap kube-system/kproxy: create it, with the mode that is wanted"
    empty = "ConfigMap kube-system/kproxy is empty: write down the mode that is wanted"
    unreadable = "ConfigMap kube-system/kproxy can't be read: data.mode: should be a valid string, not 1"
    await until(lambda: told == [absent])
    metadata = {"name": "kproxy", "namespace": "kube-system"}
    api.put(SETTINGS, {"metadata": metadata, "data": {"mode": "tc"}})
    api.put(SETTINGS, {"metadata": metadata})
    api.put(SETTINGS, {"metadata": metadata, "data": {"mode": 1}})
    await until(lambda: told == [absent, "{'mode': 'tc'}", empty, unreadable])
    api.delete(SETTINGS, "kube-system", "kproxy")
    await until(lambda: told == [absent, "{'mode': 'tc'}", empty, unreadable, absent])
    assert api.queries(SETTINGS)[0]["fieldSelector"] == "metadata.name=kproxy"
