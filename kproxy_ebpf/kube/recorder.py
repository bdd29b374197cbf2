"""Kubernetes Events (events.k8s.io/v1) about what the operator should see with `kubectl get events`.

Recording never waits and never fails: an Event that can't be posted is dropped after a line in the log. The same thing
said again within ten minutes becomes one Event with a count (a series); a bucket of tokens bounds what the API server
sees of us, however many objects are refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol
from uuid import uuid4

import aiohttp
import structlog

from kproxy_ebpf.kube.kinds import KINDS
from kproxy_ebpf.kube.response import AnswerError, answer_errors, raise_for_status
from kproxy_ebpf.model.snapshot import Kind

REPORTER = "kproxy-ebpf"
MAX_NOTE_BYTES = 1024  # the API's limit
MAX_PENDING = 256
SERIES_SECONDS = 600.0
BURST = 10
SECONDS_PER_EVENT = 5.0
ANSWER_SECONDS = 10.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class About:
    """The object an Event is about. Without a namespace (a Node) the Event goes to `default`."""

    kind: Kind
    name: str
    namespace: str = ""
    uid: str = ""


@dataclass(slots=True)
class _Series:
    """One Event at the API server, or on its way there."""

    name: str
    last_seen: float
    count: int = 1
    posted: bool = False


class WriteRequests(Protocol):
    """The part of client.Client that is used."""

    async def request(
        self, method: str, path: str, *, body: dict[str, Any], content_type: str = ...
    ) -> aiohttp.ClientResponse: ...


class EventRecorder:
    """`record` from anywhere on the loop; `run` as a task posts what was recorded. Our own identity is `node_name`."""

    def __init__(
        self,
        client: WriteRequests,
        node_name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.dropped = 0
        self._client, self._node_name = client, node_name
        self._clock, self._sleep, self._now = clock, sleep, now
        self._series: dict[tuple[About, str, str], _Series] = {}
        self._pending: dict[tuple[About, str, str], None] = {}  # ordered, each once
        self._wake = asyncio.Event()
        self._tokens = float(BURST)
        self._refilled = clock()

    def record(self, about: About, reason: str, note: str) -> None:
        """A warning about `about`; `reason` is one CamelCase word, `note` a sentence for people."""
        key = (about, reason, note)
        if key not in self._pending and len(self._pending) >= MAX_PENDING:
            self.dropped += 1
            return
        now = self._clock()
        known = self._series.get(key)
        if known is not None and now - known.last_seen < SERIES_SECONDS:
            known.count += 1
            known.last_seen = now
        else:
            self._forget_old(now)
            self._series[key] = _Series(f"{about.name}.{uuid4().hex[:16]}", now)
        self._pending[key] = None
        self._wake.set()

    async def run(self) -> NoReturn:
        """Post until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                await self._take_token()
                key = next(iter(self._pending))
                del self._pending[key]
                await self._send(*key)

    def _forget_old(self, now: float) -> None:
        for key in [key for key, series in self._series.items() if now - series.last_seen >= SERIES_SECONDS]:
            if key not in self._pending:
                del self._series[key]

    async def _take_token(self) -> None:
        now = self._clock()
        self._tokens = min(BURST, self._tokens + (now - self._refilled) / SECONDS_PER_EVENT)
        self._refilled = now
        if self._tokens < 1:
            await self._sleep((1 - self._tokens) * SECONDS_PER_EVENT)
            self._tokens, self._refilled = 1.0, self._clock()
        self._tokens -= 1

    async def _send(self, about: About, reason: str, note: str) -> None:
        series = self._series[about, reason, note]
        try:
            with answer_errors():
                async with asyncio.timeout(ANSWER_SECONDS):
                    if series.posted:
                        await self._patch(about, series)
                    else:
                        await self._post(about, reason, note, series)
                        series.posted = True
        except AnswerError as error:
            self.dropped += 1
            log.info("an Event could not be posted", about=f"{about.kind} {about.name}", error=str(error))

    async def _post(self, about: About, reason: str, note: str, series: _Series) -> None:
        namespace = about.namespace or "default"
        regarding = {"apiVersion": KINDS[about.kind].api_version, "kind": about.kind, "name": about.name}
        if about.namespace:
            regarding["namespace"] = about.namespace
        if about.uid:
            regarding["uid"] = about.uid
        body: dict[str, Any] = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": series.name, "namespace": namespace},
            "eventTime": self._micro_time(),
            "reportingController": REPORTER,
            "reportingInstance": self._node_name,
            "action": reason,
            "reason": reason,
            "regarding": regarding,
            "note": note.encode()[:MAX_NOTE_BYTES].decode(errors="ignore"),
            "type": "Warning",
        }
        if series.count > 1:
            body["series"] = self._series_body(series)
        await self._request("POST", namespace, "", body, "application/json")

    async def _patch(self, about: About, series: _Series) -> None:
        body = {"series": self._series_body(series)}
        await self._request("PATCH", about.namespace or "default", series.name, body, "application/merge-patch+json")

    def _series_body(self, series: _Series) -> dict[str, Any]:
        return {"count": max(series.count, 2), "lastObservedTime": self._micro_time()}  # the API wants at least 2

    def _micro_time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    async def _request(self, method: str, namespace: str, name: str, body: dict[str, Any], content_type: str) -> None:
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events" + (f"/{name}" if name else "")
        response = await self._client.request(method, path, body=body, content_type=content_type)
        try:
            await raise_for_status(response, ANSWER_SECONDS)
        finally:
            response.close()
