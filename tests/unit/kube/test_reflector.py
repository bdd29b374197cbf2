"""The reflector against a small API server on loopback: every way in which a watch can end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from fake_api import SERVICES, FakeApi, gone, service

from kproxy_ebpf.kube.client import Client
from kproxy_ebpf.kube.kinds.common import Scope
from kproxy_ebpf.kube.kinds.service import SERVICE
from kproxy_ebpf.kube.reflector import Reflector, WatchTiming
from kproxy_ebpf.kube.stream import Change, Refusal

TOKEN = "of-the-tests"  # noqa: S105
FAST = WatchTiming(idle=5.0, initial_idle=5.0, answer=5.0, page=5.0, healthy=0.0, backoff_base=0.02, backoff_cap=0.1)


class Watched:
    """A reflector of Services at work, and what it told."""

    def __init__(self, client: Client, **options: Any) -> None:
        self.state: dict[str, object] = {}
        self.removed: list[str] = []
        self.syncs = 0
        self.reflector = Reflector(client, SERVICE.resource(Scope()), self._emit, **{"timing": FAST, **options})
        self.task = asyncio.create_task(self.reflector.run())

    def _emit(self, changes: list[Change], complete: bool) -> None:
        for change in changes:
            if change.object is None:
                del self.state[change.name]
                self.removed.append(change.name)
            else:
                self.state[change.name] = change.object
        self.syncs += complete

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert not self.task.done(), self.task
            assert time.monotonic() < deadline, (self.state, self.syncs, self.reflector.last_error)
            await asyncio.sleep(0.005)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    fake = await FakeApi().start()
    fake.put(SERVICES, service("a"))
    fake.put(SERVICES, service("b"))
    yield fake
    await fake.stop()


@pytest.fixture
async def client(api, tmp_path) -> AsyncIterator[Client]:
    made = await Client.from_kubeconfig(api.kubeconfig(tmp_path, token=TOKEN))
    yield made
    await made.aclose()


@pytest.fixture
async def watch(client) -> AsyncIterator[Callable[..., Watched]]:
    started: list[Watched] = []

    def start(**options) -> Watched:
        started.append(Watched(client, **options))
        return started[-1]

    yield start
    for each in started:
        each.task.cancel()
    await asyncio.gather(*(each.task for each in started), return_exceptions=True)


@pytest.fixture
def naps() -> list[float]:
    """How long the reflector of a test meant to sleep."""
    return []


@pytest.fixture
def nap(naps) -> Callable[[float], Awaitable[None]]:
    async def note(seconds: float) -> None:
        naps.append(seconds)
        await asyncio.sleep(0)

    return note


async def synced(watched: Watched, api: FakeApi) -> Watched:
    await watched.until(lambda: watched.syncs == 1 and api.watching(SERVICES) == 1)
    return watched


async def test_one_streaming_watch_gives_the_state_and_every_change(api, watch):
    watched = await synced(watch(), api)
    assert set(watched.state) == {"a", "b"}
    api.put(SERVICES, service("c"))
    api.delete(SERVICES, "default", "a")
    await watched.until(lambda: set(watched.state) == {"b", "c"})
    (query,) = api.queries(SERVICES)
    assert query["sendInitialEvents"] == query["allowWatchBookmarks"] == "true"
    assert query["resourceVersionMatch"] == "NotOlderThan"
    assert query["labelSelector"] == "!service.kubernetes.io/service-proxy-name"
    assert 300 <= int(query["timeoutSeconds"]) <= 600
    assert api.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"
    assert api.requests[0].headers["User-Agent"].startswith("kproxy-ebpf/")
    assert watched.reflector.connected
    assert watched.reflector.last_error == ""


async def test_without_streaming_the_state_comes_in_pages(api, watch):
    api.streaming = False
    for index in range(5):
        api.put(SERVICES, service(f"s{index}"))
    watched = await synced(watch(page_size=3), api)
    assert len(watched.state) == 7
    queries = api.queries(SERVICES)
    assert [(q.get("limit"), q.get("continue")) for q in queries[1:4]] == [("3", None), ("3", "3"), ("3", "6")]
    assert queries[4]["resourceVersion"] == str(api.version)


async def test_an_expired_continue_token_restarts_with_one_whole_list(api, watch):
    api.streaming = False
    for index in range(5):
        api.put(SERVICES, service(f"s{index}"))
    api.answers[SERVICES] = [api._watch, _plain(api), gone]
    watched = await synced(watch(page_size=3), api)
    assert len(watched.state) == 7
    assert "limit" not in api.queries(SERVICES)[3]


async def test_what_vanished_between_the_two_lists_is_gone(api, watch):
    api.streaming = False
    for index in range(5):
        api.put(SERVICES, service(f"s{index}"))

    async def first_page(request: web.Request) -> web.Response:
        page = api._list(request)
        api.delete(SERVICES, "default", "a", silently=True)
        return page

    api.answers[SERVICES] = [api._watch, first_page, gone]
    watched = await synced(watch(page_size=3), api)
    assert watched.removed == ["a"]
    assert set(watched.state) == {"b", *(f"s{index}" for index in range(5))}


def _plain(api: FakeApi):
    async def answer(request: web.Request) -> web.Response:
        return api._list(request)

    return answer


async def test_a_server_that_ignores_the_wish_for_streaming_is_asked_for_a_list(api, watch):
    async def old(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(5)  # an old server tells no end of the state; the client leaves long before
        return response

    api.answers[SERVICES] = [old]
    watched = await synced(watch(timing=WatchTiming(initial_idle=0.1, backoff_base=0.02)), api)
    assert set(watched.state) == {"a", "b"}


async def test_a_watch_that_ends_is_resumed_after_the_last_bookmark(api, watch):
    watched = await synced(watch(), api)
    api.put(SERVICES, service("c"))
    api.bookmark(SERVICES)
    version = api.version
    api.end_watches()
    await watched.until(lambda: len(api.queries(SERVICES)) == 2 and api.watching(SERVICES) == 1)
    query = api.queries(SERVICES)[1]
    assert query["resourceVersion"] == str(version)
    assert "sendInitialEvents" not in query
    assert watched.syncs == 1
    assert set(watched.state) == {"a", "b", "c"}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("how", ["status", "event"])
async def test_410_starts_over_and_reports_what_vanished(api, watch, how, streaming):
    api.streaming = streaming
    watched = await synced(watch(), api)
    api.delete(SERVICES, "default", "a", silently=True)
    if how == "status":
        api.answers[SERVICES] = [gone]
    else:
        api.send(SERVICES, {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}})
    api.end_watches()
    await watched.until(lambda: watched.syncs == 2 and api.watching(SERVICES) == 1)
    assert set(watched.state) == {"b"}
    assert watched.removed == ["a"]


async def test_a_quiet_watch_is_renewed_without_ado(api, watch):
    watched = await synced(watch(timing=WatchTiming(idle=0.1, healthy=0.0)), api)
    await watched.until(lambda: len(api.queries(SERVICES)) >= 3)
    assert api.queries(SERVICES)[2]["resourceVersion"] == str(api.version)
    assert watched.reflector.connected
    assert set(watched.state) == {"a", "b"}


async def test_a_server_that_accepts_and_says_nothing_is_noticed(api, watch):
    async def mute(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    awake = asyncio.Event()
    timing = WatchTiming(idle=0.1, answer=0.3, healthy=0.0)
    watched = await synced(watch(timing=timing, sleep=lambda _: awake.wait()), api)
    api.answers[SERVICES] = [mute]
    await watched.until(lambda: watched.reflector.last_error)
    assert watched.reflector.last_error == "no answer for 0.3 s"
    assert not watched.reflector.connected
    assert set(watched.state) == {"a", "b"}
    awake.set()
    await watched.until(lambda: watched.reflector.connected and not watched.reflector.last_error)


async def test_a_line_of_five_mebibytes_works(api, watch):
    watched = await synced(watch(), api)
    huge = service("huge")
    huge["metadata"]["annotations"] = {"note": "x" * (5 << 20)}
    api.put(SERVICES, huge)
    await watched.until(lambda: "huge" in watched.state)
    assert len(api.queries(SERVICES)) == 1


async def test_the_server_gone_and_back_keeps_the_state_and_catches_up(api, watch):
    watched = await synced(watch(), api)
    await api.stop()
    await watched.until(lambda: watched.reflector.last_error and not watched.reflector.connected)
    assert set(watched.state) == {"a", "b"}
    api.objects[SERVICES].pop(("default", "a"))
    api.answers[SERVICES] = [gone]
    await api.start()
    await watched.until(lambda: watched.syncs == 2 and set(watched.state) == {"b"})
    assert watched.reflector.connected
    assert watched.reflector.last_error == ""


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_bad_object_is_refused_and_the_others_work(api, watch, streaming):
    api.streaming = streaming
    api.put(SERVICES, service("bad", ports=[{"port": "http"}]))
    api.put(SERVICES, service("c"))
    watched = await synced(watch(), api)
    assert isinstance(watched.state["bad"], Refusal)
    assert str(watched.state["bad"]) == "spec.ports[0].port: should be a valid integer, not 'http'"
    assert {"a", "b", "c"} < set(watched.state)
    api.put(SERVICES, service("bad"))
    await watched.until(lambda: not isinstance(watched.state["bad"], Refusal))
    api.put(SERVICES, service("bad", ports=None))
    await watched.until(lambda: isinstance(watched.state["bad"], Refusal))
    api.delete(SERVICES, "default", "bad")
    await watched.until(lambda: "bad" not in watched.state)


async def test_an_object_that_stops_counting_is_reported_as_gone_once(api, watch):
    watched = await synced(watch(), api)
    api.put(SERVICES, service("a", type="ExternalName"))
    api.put(SERVICES, service("a", type="ExternalName"))
    api.put(SERVICES, service("c"))
    await watched.until(lambda: "c" in watched.state)
    assert watched.removed == ["a"]


async def test_half_a_line_is_not_taken_for_an_event(api, watch):
    watched = await synced(watch(), api)
    api.send(SERVICES, b'{"type":"ADDED","object":{"metadata":{"name":"c"')
    api.end_watches()
    await watched.until(lambda: len(api.queries(SERVICES)) == 2 and api.watching(SERVICES) == 1)
    assert set(watched.state) == {"a", "b"}


async def test_a_line_of_garbage_resumes_the_watch(api, watch):
    watched = await synced(watch(), api)
    api.send(SERVICES, b"<html>502</html>\n")
    await watched.until(lambda: len(api.queries(SERVICES)) == 2 and api.watching(SERVICES) == 1)
    api.put(SERVICES, service("c"))
    await watched.until(lambda: "c" in watched.state)


async def test_back_off_grows_with_full_jitter_and_is_reset_by_a_watch_that_delivers(api, watch, naps, nap):
    api.answers[SERVICES] = [lambda _: web.json_response({"message": "busy"}, status=503) for _ in range(7)]
    watched = watch(sleep=nap, jitter=lambda: 0.5, timing=WatchTiming())
    await watched.until(lambda: watched.syncs)
    assert naps == [0.5, 1, 2, 4, 8, 15, 15]
    api.answers[SERVICES] = [lambda _: web.json_response({"message": "busy"}, status=503)]
    api.end_watches()
    await watched.until(lambda: len(naps) == 8)
    assert naps[7] == 0.5


async def test_a_watch_that_always_ends_at_once_is_not_hammered(api, watch, naps, nap):
    async def empty(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    watched = await synced(watch(sleep=nap, jitter=lambda: 0.5, timing=WatchTiming()), api)
    api.answers[SERVICES] = [empty] * 3
    api.end_watches()
    await watched.until(lambda: len(api.queries(SERVICES)) == 5 and api.watching(SERVICES))
    assert naps == [0.5, 1, 2]


async def test_a_credential_that_no_header_may_hold_is_told_and_tried_again(api, tmp_path, watch):
    watched = await synced(watch(), api)
    api.kubeconfig(tmp_path, token="first\nsecond")  # noqa: S106
    api.end_watches()
    await watched.until(lambda: watched.reflector.last_error)
    assert "headers" in watched.reflector.last_error
    assert set(watched.state) == {"a", "b"}
    api.kubeconfig(tmp_path, token=TOKEN)
    await watched.until(lambda: watched.reflector.connected and not watched.reflector.last_error)


async def test_an_error_whose_body_is_nested_deeply_is_an_error_like_any_other(api, watch):
    body = b"[" * 20_000 + b"]" * 20_000
    api.answers[SERVICES] = [lambda _: web.Response(status=503, body=body)]
    watched = watch(timing=FAST)
    await watched.until(lambda: watched.syncs)
    assert watched.removed == []


async def test_whatever_a_parser_stumbles_over_is_an_answer_that_is_of_no_use(api, watch, monkeypatch):
    watched = await synced(watch(), api)
    with monkeypatch.context() as patch:
        patch.setattr("kproxy_ebpf.kube.reflector.batches", lambda *_: [][0])
        api.put(SERVICES, service("c"))
        await watched.until(lambda: watched.reflector.last_error)
        assert watched.reflector.last_error == "IndexError: list index out of range"
    await watched.until(lambda: api.watching(SERVICES))
    api.put(SERVICES, service("c"))
    await watched.until(lambda: "c" in watched.state)


async def test_what_the_receiver_raises_is_no_trouble_of_the_server(api, client):
    def emit(_changes, _complete):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Reflector(client, SERVICE.resource(Scope()), emit, timing=FAST).run()


async def promise_a_body(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(status=503, headers={"Content-Length": "100"})
    await response.prepare(request)
    await asyncio.sleep(60)
    return response


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_error_whose_body_never_comes_is_noticed(api, watch, naps, nap, streaming):
    api.streaming = streaming
    timing = WatchTiming(answer=0.2, healthy=0.0)
    watched = await synced(watch(timing=timing, sleep=nap), api)
    api.answers[SERVICES] = [promise_a_body]
    api.end_watches()
    await watched.until(lambda: naps)
    await watched.until(lambda: watched.reflector.connected and api.watching(SERVICES) == 1)


@pytest.mark.parametrize(
    "content", [b"\n\n", b'{"type":"ADDED","obj', b'{"type":"BOOKMARK","object":{"metadata":{}}}\n']
)
async def test_bytes_that_are_no_progress_are_not_hammered_for(api, watch, naps, nap, content):
    async def useless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(content)
        return response

    watched = await synced(watch(sleep=nap, jitter=lambda: 0.5, timing=WatchTiming()), api)
    api.answers[SERVICES] = [useless] * 3
    api.end_watches()
    await watched.until(lambda: len(api.queries(SERVICES)) == 5 and api.watching(SERVICES))
    assert naps == [0.5, 1, 2]


@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("99999999999", 120), ("soon", 0.5), ("-3", 0.5)])
async def test_a_server_that_wants_to_be_left_alone_is(api, watch, naps, nap, header, seconds):
    api.answers[SERVICES] = [lambda _: web.Response(status=429, headers={"Retry-After": header})]
    watched = watch(sleep=nap, jitter=lambda: 0.5, timing=WatchTiming())
    await watched.until(lambda: watched.syncs)
    assert naps == [seconds]
