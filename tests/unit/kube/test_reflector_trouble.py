"""The reflector and a server in trouble: bad objects, cut and malformed bodies, silence, refusals, back-off."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from fake_api import SERVICES, service
from watching import FAST, TOKEN, synced

from kproxy_ebpf.kube.kinds.common import Scope
from kproxy_ebpf.kube.kinds.service import SERVICE
from kproxy_ebpf.kube.reflector import Reflector, WatchTiming
from kproxy_ebpf.kube.stream import Refusal


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
    await watched.until(lambda: len(api.queries(SERVICES)) == 2 and api.watching(SERVICES) == 1)
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
