"""The reflector against a small API server on loopback: every way in which a watch can end."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from fake_api import SERVICES, FakeApi, gone, service
from watching import TOKEN, synced

from kproxy_ebpf.kube.reflector import WatchTiming


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


async def test_an_object_that_stops_counting_is_reported_as_gone_once(api, watch):
    watched = await synced(watch(), api)
    api.put(SERVICES, service("a", type="ExternalName"))
    api.put(SERVICES, service("a", type="ExternalName"))
    api.put(SERVICES, service("c"))
    await watched.until(lambda: "c" in watched.state)
    assert watched.removed == ["a"]
