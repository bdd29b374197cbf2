"""List and watch of one resource: every change of it, for ever, whatever happens to the API server.

It works as client-go's reflector does: one watch streams the initial state (WatchList, Kubernetes 1.34 and later) where
the server has that, else a paged list gives it; then each watch resumes where the last one ended. A 410 (as status or
as ERROR event) starts over. Objects that vanished while nobody watched are reported as gone at the end of the next
initial state. Until then, and while the server is away, known objects stay known.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Generic, NoReturn, Protocol, TypeVar

import aiohttp
import structlog

from kproxy_ebpf.kube.response import AnswerError, StatusError, answer_errors, notice_dead_peer, raise_for_status
from kproxy_ebpf.kube.stream import (
    Bookmark,
    BrokenStreamError,
    Change,
    DecodedPage,
    Failure,
    LineSplitter,
    Resource,
    batches,
    decode_page,
    page_query,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")
Emit = Callable[[list[Change[T]], bool], None]
"""Gets a batch of changes, and whether the state is complete with it."""
OnBatch = Callable[[list[Change[T]], Bookmark | None], None]
"""Gets the changes up to a bookmark, or up to the end of what has come."""

UNSERVED = (400, 422)
FORBIDDEN = (403, 404)


class ReadRequests(Protocol):
    """The part of client.Client that is used."""

    async def request(self, method: str, path: str, query: list[tuple[str, str]]) -> aiohttp.ClientResponse: ...


@dataclass(frozen=True, slots=True)
class WatchTiming:
    """All in seconds. `watch`: shortest server-side time-out of a watch, the longest is twice as long. `answer`: until
    an answer begins, and to read the words of an error. `idle`: longest silence in a watch; the server sends a bookmark
    a minute, but only after changes. `page`: to read one page of a list. `healthy`: a watch that lived so long was none
    that failed.
    """

    watch: float = 300.0
    answer: float = 30.0
    idle: float = 180.0
    page: float = 60.0
    initial_idle: float = 15.0
    healthy: float = 5.0
    backoff_base: float = 1.0
    backoff_cap: float = 30.0
    log_again: float = 60.0


class NotStreamedError(Exception):
    """The server has no WatchList."""


class Reflector(Generic[T]):
    """`run` it as a task. `connected` and `last_error` are for status pages."""

    def __init__(
        self,
        client: ReadRequests,
        resource: Resource[T],
        emit: Emit[T],
        *,
        page_size: int = 500,
        timing: WatchTiming | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.connected = False
        self.last_error = ""
        self.synced = False
        self.optional = resource.optional
        self._client, self._resource, self._emit = client, resource, emit
        self._page_size = page_size
        self._timing = timing or WatchTiming()
        self._sleep, self._clock, self._jitter = sleep, clock, jitter
        self._log = log.bind(resource=resource.path)
        self._known: set[tuple[str, str]] = set()
        self._version = ""  # resume after it; empty: the initial state is to be fetched
        self._streaming = True
        self._failures = 0
        self._logged = ""
        self._logged_at = float("-inf")

    async def run(self) -> NoReturn:
        """Emit changes until cancelled: no error of the server ends it. `emit` must not raise."""
        while True:
            try:
                await self._once()
            except AnswerError as error:
                await self._back_off(error)

    async def _once(self) -> None:
        """One step: the initial state, or one watch."""
        if self._version:
            await self._watch()
        elif self._streaming:
            try:
                await self._watch_from_start()
            except NotStreamedError:
                self._streaming = False
                self._log.info("the API server streams no initial state: using lists")
        else:
            await self._list()

    async def _back_off(self, error: AnswerError) -> None:
        """Exponential, full jitter: a thousand nodes must not come back at once."""
        self.connected = False
        self.last_error = str(error)
        if isinstance(error, StatusError) and error.too_old:
            self._version, self._streaming = "", True  # the server may have been upgraded: ask for WatchList again
            self._log.info("what was watched is too old: starting over", error=self.last_error)
        else:
            self._warn(self.last_error)
        if self.optional and not self.synced and isinstance(error, StatusError) and error.code in FORBIDDEN:
            self._complete(set())
        ceiling = min(self._timing.backoff_cap, self._timing.backoff_base * 2 ** min(self._failures, 16))
        self._failures += 1
        wanted = error.retry_after if isinstance(error, StatusError) else 0.0
        await self._sleep(max(ceiling * self._jitter(), wanted))

    def _warn(self, text: str) -> None:
        """Log a new trouble at once and a lasting one now and then."""
        now = self._clock()
        if text != self._logged or now - self._logged_at >= self._timing.log_again:
            self._logged, self._logged_at = text, now
            self._log.warning("no answer to use from the API server: trying again", error=text)

    def _works(self) -> None:
        """The watch delivers. A list that succeeds is not enough: the watch after it may fail every time."""
        self._failures = 0
        if self._logged:
            self._logged = ""
            self._log.info("the API server answers again")

    # --- lists

    async def _list(self) -> None:
        """The initial state, page by page; whole in one answer once a continue token has expired under us."""
        present: set[tuple[str, str]] = set()
        limit, more = self._page_size, ""
        while True:
            try:
                page = await self._page(limit, more)
            except StatusError as error:
                if error.code != HTTPStatus.GONE or not more:
                    raise
                limit, more = 0, ""
                present.clear()  # the new list is of a newer state
                continue
            present |= {(change.namespace, change.name) for change in page.changes if change.object is not None}
            self._apply(page.changes)
            more = page.more
            if not more:
                self._version = page.version
                self._complete(present)
                return

    async def _page(self, limit: int, more: str) -> DecodedPage[T]:
        response = await self._get(page_query(limit, more))
        try:
            await self._accept(response)
            with answer_errors():
                async with asyncio.timeout(self._timing.page):
                    return decode_page(self._resource, await response.read())
        finally:
            response.close()

    # --- watches

    async def _watch_from_start(self) -> None:
        """A watch that begins with the initial state, whose end a bookmark marks, and goes on with changes.

        Raises NotStreamedError when no bookmark comes: a server without WatchList ignores the parameters.
        """
        present: set[tuple[str, str]] = set()

        def on_batch(changes: list[Change[T]], bookmark: Bookmark | None) -> None:
            if self._version:
                self._follow(changes, bookmark)
                return
            self._apply(changes)
            for change in changes:
                if change.object is None:
                    present.discard((change.namespace, change.name))
                else:
                    present.add((change.namespace, change.name))
            if bookmark and not (bookmark.initial_end and bookmark.version):
                raise NotStreamedError
            if bookmark:
                self._version = bookmark.version
                self._complete(present)
                self._works()

        query = [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan"), ("resourceVersion", "")]
        await self._stream(query, on_batch)
        if not self._version:
            raise BrokenStreamError("the initial state ended early")

    async def _watch(self) -> None:
        await self._stream([("resourceVersion", self._version)], self._follow)

    def _follow(self, changes: list[Change[T]], bookmark: Bookmark | None) -> None:
        self._apply(changes)
        version = (bookmark.version if bookmark else changes[-1].version) or self._version
        if version != self._version:
            self._version = version
            self._works()

    async def _stream(self, query: list[tuple[str, str]], on_batch: OnBatch[T]) -> None:
        """One watch until it ends: `on_batch` for each piece of the answer that came, cut at bookmarks."""
        seconds = int(self._timing.watch * (1 + self._jitter()))
        common = [("watch", "1"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", str(seconds))]
        started, version = self._clock(), self._version
        response = await self._get([*common, *query])
        try:
            if response.status in UNSERVED and not self._version:
                raise NotStreamedError
            await self._accept(response)
            splitter = LineSplitter()
            while chunk := await self._read(response):
                with answer_errors():
                    decoded = list(batches(self._resource, splitter.feed(chunk)))
                for changes, mark in decoded:
                    if changes or isinstance(mark, Bookmark):
                        on_batch(changes, mark if isinstance(mark, Bookmark) else None)
                    if isinstance(mark, Failure):
                        raise StatusError(mark.code, mark.message)
        finally:
            response.close()
        if self._version == version and self._clock() - started < self._timing.healthy:
            raise BrokenStreamError("a watch ended as soon as it began")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """The next piece, b"" at the end. Silence for too long ends a watch, too: a quiet server and a dead one look
        alike, and the next request tells them apart.
        """
        seconds = self._timing.idle if self._version else self._timing.initial_idle
        with answer_errors():
            try:
                async with asyncio.timeout(seconds):
                    return await response.content.readany()
            except TimeoutError:
                if self._version:
                    return b""
        raise NotStreamedError

    async def _get(self, query: list[tuple[str, str]]) -> aiohttp.ClientResponse:
        with answer_errors():
            try:
                async with asyncio.timeout(self._timing.answer):
                    return await self._client.request("GET", self._resource.path, [*self._resource.query, *query])
            except TimeoutError as error:  # the client's own has words
                raise TimeoutError(str(error) or f"no answer for {self._timing.answer:g} s") from None

    async def _accept(self, response: aiohttp.ClientResponse) -> None:
        with answer_errors():
            await raise_for_status(response, self._timing.answer)
            notice_dead_peer(response)
        self.connected, self.last_error = True, ""

    # --- what is known

    def _apply(self, changes: list[Change[T]]) -> None:
        """Emit the changes; an object that never counted is not reported as gone."""
        told = []
        for change in changes:
            key = (change.namespace, change.name)
            if change.object is not None:
                self._known.add(key)
            elif key in self._known:
                self._known.discard(key)
            else:
                continue
            told.append(change)
        if told:
            self._emit(told, False)

    def _complete(self, present: set[tuple[str, str]]) -> None:
        """The state is complete: known objects that are not `present` vanished while nobody watched."""
        gone: list[Change[T]] = [Change(*key, "", "", None) for key in sorted(self._known - present)]
        self._known &= present
        self.synced = True
        self._emit(gone, True)
