"""Everything of some kinds as the API server has it now, for a command that asks once. The daemon's is reflector.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from kproxy_ebpf.errors import ClusterError
from kproxy_ebpf.kube.kinds import Kinds
from kproxy_ebpf.kube.kinds.common import ApiKind, Scope
from kproxy_ebpf.kube.reflector import ReadRequests
from kproxy_ebpf.kube.response import AnswerError, StatusError, answer_errors, raise_for_status
from kproxy_ebpf.kube.source import events_to
from kproxy_ebpf.kube.stream import Change, DecodedPage, Resource, decode_page, page_query
from kproxy_ebpf.model.snapshot import Event

PAGE_SIZE = 500
ANSWER_SECONDS = 60.0


async def list_once(client: ReadRequests, kinds: Kinds, scope: Scope) -> list[Event]:
    """The objects of `kinds`, each kind's Synced after them. Raises ClusterError that names the kind."""
    events: list[Event] = []
    for kind in kinds.values():
        try:
            changes = await _changes(client, kind, scope)
        except AnswerError as error:
            raise ClusterError(f"{kind.path} can't be read: {error}") from error
        events_to(events.extend, kind)(changes, True)
    return events


async def _changes(client: ReadRequests, kind: ApiKind[Any], scope: Scope) -> list[Change[Any]]:
    """Page by page; whole in one answer once a continue token has expired."""
    resource = kind.resource(scope)
    try:
        return [change async for page in _pages(client, resource, PAGE_SIZE) for change in page.changes]
    except StatusError as error:
        if error.code != HTTPStatus.GONE:
            raise
    return [change async for page in _pages(client, resource, 0) for change in page.changes]


async def _pages(client: ReadRequests, resource: Resource[Any], limit: int) -> AsyncIterator[DecodedPage[Any]]:
    more = ""
    while True:
        page = await _page(client, resource, page_query(limit, more))
        yield page
        more = page.more
        if not more:
            return


async def _page(client: ReadRequests, resource: Resource[Any], query: list[tuple[str, str]]) -> DecodedPage[Any]:
    with answer_errors():
        async with asyncio.timeout(ANSWER_SECONDS):
            response = await client.request("GET", resource.path, [*resource.query, *query])
            try:
                await raise_for_status(response, ANSWER_SECONDS)
                return decode_page(resource, await response.read())
            finally:
                response.close()
