"""Links, routes and neighbours as the kernel has them, by pyroute2.

pyroute2's sockets need an asyncio loop of their own, and uvloop does not suit them. So `listen` starts a thread, and
`requests` is for threads in which no loop runs.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import structlog
from pyroute2.iproute.linux import AsyncIPRoute, IPRoute
from pyroute2.netlink import NLM_F_DUMP_INTR
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE, RTMGRP_LINK, RTMGRP_NEIGH, rt_type

from kproxy_ebpf.linux.netlink import SOCKET_FAMILIES

log = structlog.get_logger(__name__)

Message = Any
"""What pyroute2 makes of a netlink message: header fields by name, attributes by `get_attr`."""

_GROUPS = RTMGRP_LINK | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE | RTMGRP_NEIGH
_NEIGHBOUR_EVENTS = ("RTM_NEWNEIGH", "RTM_DELNEIGH")
NO_NEIGHBOUR = 0x01 | 0x20 | 0x40  # NUD_INCOMPLETE, NUD_FAILED, NUD_NOARP
_SO_RCVBUFFORCE = getattr(socket, "SO_RCVBUFFORCE", 33)
_HEARING_BYTES = 1 << 22


class Survey(NamedTuple):
    """What the kernel knows: links by ifindex, routes of all tables by family."""

    links: dict[int, Message]
    routes: dict[int, list[Message]]


class LinkChange(NamedTuple):
    """A link appeared or changed (`name`), or went away (`name` is "")."""

    ifindex: int
    name: str


Tell = Callable[[LinkChange | None], object]
"""Takes the change of a link. None: read all links again, for default routes have changed or messages were lost."""


def parse_link(message: Message) -> LinkChange | None:
    """What RTM_NEWLINK or RTM_DELLINK says; None for a bridge's news about one of its ports."""
    if message["family"] != socket.AF_UNSPEC:
        return None
    gone = message["event"] == "RTM_DELLINK"
    return LinkChange(message["index"], "" if gone else text(message.get_attr("IFLA_IFNAME")))


def parse_default_route(message: Message) -> set[int] | None:
    """The links that a default route leads to; None for any other route."""
    if message["dst_len"] != 0 or message["type"] != rt_type["unicast"]:
        return None
    return hops(message)


def hops(message: Message) -> set[int]:
    """The links that a route leads to."""
    links = {hop["oif"] for hop in message.get_attr("RTA_MULTIPATH") or ()}
    link = message.get_attr("RTA_OIF")
    return links if link is None else links | {link}


def links() -> dict[int, str]:
    """The names of all links by ifindex. Raises OSError."""
    with requests("links") as route:
        return dict(filter(None, map(parse_link, dump(route.get_links))))


def uplinks() -> set[int]:
    """The links that any default route leads to. Raises OSError."""
    with requests("routes") as route:
        messages = dump(partial(route.get_routes, family=socket.AF_UNSPEC))
    return set().union(*(parse_default_route(message) or () for message in messages))


def survey(route: IPRoute) -> Survey:
    """Read links and routes. Raises NetlinkError."""
    return Survey(
        {message["index"]: message for message in dump(route.get_links)},
        {family: dump(partial(route.get_routes, family=number)) for family, number in SOCKET_FAMILIES.items()},
    )


@contextmanager
def requests(about: str) -> Iterator[IPRoute]:
    """Requests to the kernel, in a thread without a running loop. A refusal is an OSError that begins with `about`."""
    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        raise OSError(error.code, f"{about}: {os.strerror(error.code)}") from error


def dump(call: Callable[[], Iterable[Message]]) -> list[Message]:
    """All objects of a kind. They are read again if they changed during the dump, for then some may be missing."""
    while True:
        messages = list(call())
        if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in messages):
            return messages


async def listen(hear: Tell, wake: Callable[[], object] = lambda: None) -> None:
    """Call `hear`, in this loop, for every change of a link from now on (first None), until cancelled. Raises OSError.

    `wake` is called when anything changes that pods' addresses are read from.
    """
    home, apart = asyncio.get_running_loop(), asyncio.SelectorEventLoop()
    tell, neighbours = (lambda change: home.call_soon_threadsafe(hear, change)), Neighbours()

    def take(message: Message) -> None:
        if message["event"] not in _NEIGHBOUR_EVENTS:
            _tell(message, tell)
            home.call_soon_threadsafe(wake)
        elif neighbours.changes(message):
            home.call_soon_threadsafe(wake)

    task = apart.create_task(_listen(tell, take))
    with ThreadPoolExecutor(1, "rtnetlink") as thread:
        listening = home.run_in_executor(thread, _run, apart, task)
        try:
            await asyncio.shield(listening)
        finally:
            with suppress(RuntimeError):  # it has ended by itself
                apart.call_soon_threadsafe(task.cancel)


def _run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    try:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _listen(tell: Tell, take: Callable[[Message], None]) -> None:
    """After a loss of messages pyroute2's socket is useless: a new one is bound before all links are read again."""
    while True:
        try:
            async with AsyncIPRoute() as route:
                route.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _HEARING_BYTES)
                await route.bind(_GROUPS)
                tell(None)
                while True:
                    async for message in route.get():
                        take(message)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            log.warning("link messages were lost: looking at all links again")


class Neighbours:
    """Tells changes of neighbours from the many messages that only say how fresh a neighbour is."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], str] = {}

    def changes(self, message: Message) -> bool:
        if message["family"] not in (socket.AF_INET, socket.AF_INET6):
            return False
        key = message["ifindex"], message.get_attr("NDA_DST")
        is_there = message["event"] == "RTM_NEWNEIGH" and not message["state"] & NO_NEIGHBOUR
        mac = message.get_attr("NDA_LLADDR") or "" if is_there else ""
        was = self._known.pop(key, "")
        if mac:
            self._known[key] = mac
        return bool(mac != was)


def _tell(message: Message, tell: Tell) -> None:
    event = message["event"]
    if event in ("RTM_NEWROUTE", "RTM_DELROUTE"):
        if parse_default_route(message) is not None:
            tell(None)
    elif event in ("RTM_NEWLINK", "RTM_DELLINK") and (change := parse_link(message)):
        tell(change)


def text(value: str | bytes | None) -> str:
    """A link's name as a string. Names may hold any byte; pyroute2 does not decode those that are no UTF-8."""
    return os.fsdecode(value or b"")
