"""Kubernetes Events: what is posted, what is counted instead, and that nothing of it can hurt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from fake_api import FakeApi

from kproxy_ebpf.kube.client import Client
from kproxy_ebpf.kube.recorder import BURST, MAX_PENDING, SECONDS_PER_EVENT, About, EventRecorder
from kproxy_ebpf.model.snapshot import Kind

ABOUT = About(Kind.SERVICE, "web", "shop", "u1")
PATH = "/apis/events.k8s.io/v1/namespaces/shop/events"


class Clock:
    """Time stands still until someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


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
def bodies(api) -> list[tuple[str, str, dict]]:
    """Method, path and body of everything posted."""
    seen: list[tuple[str, str, dict]] = []

    async def keep(request: web.Request) -> web.Response:
        seen.append((request.method, request.path, await request.json()))
        return web.json_response({}, status=201)

    api.otherwise = keep
    return seen


@pytest.fixture
async def recorder(api, tmp_path) -> AsyncIterator[tuple[EventRecorder, Clock]]:
    client = await Client.from_kubeconfig(api.kubeconfig(tmp_path))
    clock = Clock()
    made = EventRecorder(client, "node1", clock=clock, sleep=clock.sleep)
    task = asyncio.create_task(made.run())
    yield made, clock
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.aclose()


async def test_an_event_has_what_the_api_demands(recorder, bodies):
    recorder[0].record(ABOUT, "Refused", "spec.ports: " + "é" * 1000)
    await until(lambda: bodies)
    ((method, path, body),) = bodies
    assert (method, path) == ("POST", PATH)
    assert body["metadata"]["namespace"] == "shop"
    assert body["regarding"] == {"apiVersion": "v1", "kind": "Service", "name": "web", "namespace": "shop", "uid": "u1"}
    assert (body["reportingController"], body["reportingInstance"]) == ("kproxy-ebpf", "node1")
    assert (body["type"], body["reason"]) == ("Warning", "Refused")
    assert body["eventTime"].endswith("Z")
    assert 1000 < len(body["note"].encode()) <= 1024
    assert "series" not in body


async def test_the_same_again_is_counted_and_after_ten_minutes_told_anew(recorder, bodies):
    made, clock = recorder
    made.record(ABOUT, "Refused", "x")
    await until(lambda: len(bodies) == 1)
    made.record(ABOUT, "Refused", "x")
    made.record(ABOUT, "Refused", "x")
    await until(lambda: len(bodies) == 2)
    method, path, body = bodies[1]
    assert (method, path) == ("PATCH", f"{PATH}/{bodies[0][2]['metadata']['name']}")
    assert body["series"]["count"] == 3
    clock.now += 601
    made.record(ABOUT, "Refused", "x")
    await until(lambda: len(bodies) == 3)
    assert bodies[2][0] == "POST"
    assert bodies[2][2]["metadata"]["name"] != bodies[0][2]["metadata"]["name"]


async def test_a_flood_is_bounded_in_rate_and_number(recorder, bodies):
    made, clock = recorder
    for index in range(1000):
        made.record(About(Kind.SERVICE, f"s{index}", "shop"), "Refused", "x")
    assert made.dropped == 1000 - MAX_PENDING
    await until(lambda: len(bodies) == MAX_PENDING)
    assert clock.now == pytest.approx((MAX_PENDING - BURST) * SECONDS_PER_EVENT)


async def test_a_refused_post_is_dropped_and_the_next_one_works(recorder, api, bodies):
    api.answers[PATH] = [lambda _: web.json_response({"message": "no"}, status=403)]
    recorder[0].record(ABOUT, "Refused", "x")
    await until(lambda: recorder[0].dropped == 1)
    recorder[0].record(ABOUT, "Refused", "y")
    await until(lambda: len(bodies) == 1)


async def test_an_object_without_namespace_goes_to_default(recorder, bodies):
    recorder[0].record(About(Kind.NODE, "node1"), "BadSetting", "mode: x")
    await until(lambda: bodies)
    assert bodies[0][1] == "/apis/events.k8s.io/v1/namespaces/default/events"
    assert bodies[0][2]["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "node1"}


async def test_a_credential_that_no_header_may_hold_costs_the_event_alone(recorder, api, bodies, tmp_path):
    api.kubeconfig(tmp_path, token="first\nsecond")  # noqa: S106
    recorder[0].record(ABOUT, "Refused", "x")
    await until(lambda: recorder[0].dropped == 1)
    api.kubeconfig(tmp_path)
    recorder[0].record(ABOUT, "Refused", "y")
    await until(lambda: bodies)
