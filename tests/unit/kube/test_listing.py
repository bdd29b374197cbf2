"""Everything as it is now: page by page, with what can't be read, and with an error that names the kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from fake_api import FakeApi, gone

from kproxy_ebpf.errors import ClusterError
from kproxy_ebpf.kube import listing
from kproxy_ebpf.kube.client import Client
from kproxy_ebpf.kube.kinds import POLICY_KINDS
from kproxy_ebpf.kube.kinds.common import Scope
from kproxy_ebpf.kube.listing import list_once
from kproxy_ebpf.model.snapshot import Event, Kind, Refused, Synced, Upserted

PODS, POLICIES = POLICY_KINDS[Kind.POD].path, POLICY_KINDS[Kind.NETWORK_POLICY].path


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    api = await FakeApi().start()
    for number in range(5):
        api.put(PODS, {"metadata": {"name": f"pod{number}", "namespace": "x"}})
    yield api
    await api.stop()


async def told(api: FakeApi, folder: Path) -> list[Event]:
    client = await Client.from_kubeconfig(api.kubeconfig(folder))
    try:
        return await list_once(client, POLICY_KINDS, Scope())
    finally:
        await client.aclose()


def names(events: list[Event]) -> list[str]:
    return [event.ref.name for event in events if isinstance(event, Upserted)]


async def test_pages(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE_SIZE", 2)
    events = await told(api, tmp_path)
    assert names(events) == [f"pod{number}" for number in range(5)]
    assert [event.kind for event in events if isinstance(event, Synced)] == list(POLICY_KINDS)
    assert [query.get("continue") for query in api.queries(PODS)] == [None, "2", "4"]


async def test_a_token_that_expires_is_answered_with_one_whole_list(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE_SIZE", 2)

    async def normally(request: web.Request) -> web.StreamResponse:
        return api._list(request)

    async def expired(request: web.Request) -> web.StreamResponse:
        return gone(request)

    api.answers[PODS] = [normally, expired]
    assert names(await told(api, tmp_path)) == [f"pod{number}" for number in range(5)]
    assert api.queries(PODS)[-1] == {}


async def test_what_cant_be_read_is_refused(api: FakeApi, tmp_path: Path) -> None:
    api.put(POLICIES, {"metadata": {"name": "odd", "namespace": "x"}, "spec": "deny"})
    assert [event.ref.name for event in await told(api, tmp_path) if isinstance(event, Refused)] == ["odd"]


async def test_no_right_to_list(api: FakeApi, tmp_path: Path) -> None:
    async def forbidden(_: web.Request) -> web.StreamResponse:
        return web.json_response({"kind": "Status", "code": 403, "message": "pods is forbidden"}, status=403)

    api.answers[PODS] = [forbidden]
    with pytest.raises(
        ClusterError, match="/api/v1/pods can't be read: the API server answered 403: pods is forbidden"
    ):
        await told(api, tmp_path)
