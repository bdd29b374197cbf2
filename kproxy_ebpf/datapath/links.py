"""Pods come and go as links: programs are attached to a new pod's link at once, and taken off with it.

The kernel tells of links (netlink); nothing is polled. Only links whose name a pattern admits are touched, and never
one that holds a default route: that is an uplink, whatever its name.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from kproxy_ebpf.datapath import netlink
from kproxy_ebpf.datapath.attach import Attacher
from kproxy_ebpf.datapath.netlink import Message, Netlink, parse_attributes
from kproxy_ebpf.errors import NodeError

log = structlog.get_logger(__name__)

_IFINFO = struct.Struct("=BxHiII")  # family, type, ifindex, flags, changed
_ROUTE = struct.Struct("=8BI")  # family, destination bits, …, type, flags
_NEXT_HOP = struct.Struct("=HBBi")  # length, flags, hops, ifindex
_IFLA_IFNAME, _RTA_OIF, _RTA_MULTIPATH = 3, 4, 9
_RTN_UNICAST = 1
_GROUPS = netlink.RTMGRP_LINK | netlink.RTMGRP_IPV4_ROUTE | netlink.RTMGRP_IPV6_ROUTE


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A link appeared or changed (`name`), or went away (`name` is "")."""

    ifindex: int
    name: str


def parse_link(message: Message) -> LinkChange | None:
    """What RTM_NEWLINK or RTM_DELLINK says; None for a bridge's news about one of its ports."""
    family, _, ifindex, _, _ = _IFINFO.unpack_from(message.body)
    if family != socket.AF_UNSPEC:
        return None
    if message.type == netlink.RTM_DELLINK:
        return LinkChange(ifindex, "")
    return LinkChange(ifindex, netlink.text(parse_attributes(message.body[_IFINFO.size :]).get(_IFLA_IFNAME, b"")))


def parse_default_route(message: Message) -> set[int] | None:
    """The links that a default route leads to; None for any other route."""
    _, destination_bits, _, _, _, _, _, type_, _ = _ROUTE.unpack_from(message.body)
    if destination_bits != 0 or type_ != _RTN_UNICAST:
        return None
    attributes = parse_attributes(message.body[_ROUTE.size :])
    links = {struct.unpack("=i", attributes[_RTA_OIF])[0]} if _RTA_OIF in attributes else set()
    hops, offset = attributes.get(_RTA_MULTIPATH, b""), 0
    while offset + _NEXT_HOP.size <= len(hops):
        length, _, _, ifindex = _NEXT_HOP.unpack_from(hops, offset)
        links.add(ifindex)
        offset += max(length, _NEXT_HOP.size)
    return links


class PodLinks:
    """Keeps the programs attached to exactly the pods' links. `run` does the work; the rest may be called meanwhile.

    `admits` says whether a link's name is a pod's; after it has changed its mind call `reconsider`. `on_attached` is
    told how many seconds after the kernel's message a link had its programs, `on_failed` of each failed attempt.
    """

    def __init__(
        self,
        attacher: Attacher,
        admits: Callable[[str], bool],
        on_attached: Callable[[float], None] = lambda _: None,
        on_failed: Callable[[], None] = lambda: None,
    ) -> None:
        self.attached: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        self._attacher = attacher
        self._admits = admits
        self._on_attached, self._on_failed = on_attached, on_failed
        self._known: dict[int, str] = {}
        self._uplinks: set[int] = set()
        self._heard: deque[tuple[float, Message]] = deque()
        self._stale = True
        self._wake = asyncio.Event()
        self.ready = asyncio.Event()  # the links that existed at the start have been dealt with

    def reconsider(self) -> None:
        """Look at all links again."""
        self._stale = True
        self._wake.set()

    async def run(self) -> None:
        """Attach and detach until cancelled. What is attached then stays: the datapath outlives the daemon."""
        loop = asyncio.get_running_loop()
        with netlink.listening_socket(_GROUPS) as listener:
            loop.add_reader(listener.fileno(), self._hear, listener)
            try:
                while True:
                    await self._settle()
                    self.ready.set()
                    await self._wake.wait()
                    self._wake.clear()
            finally:
                loop.remove_reader(listener.fileno())

    def _hear(self, listener: socket.socket) -> None:
        now = time.monotonic()
        try:
            self._heard.extend((now, message) for message in netlink.receive(listener))
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            log.warning("link messages were lost: looking at all links again")
            self._stale = True
        self._wake.set()

    async def _settle(self) -> None:
        """Deal with everything heard so far."""
        while self._stale or self._heard:
            if self._stale:
                await self._look_at_all()
                continue
            heard_at, message = self._heard.popleft()
            if message.type in (netlink.RTM_NEWROUTE, netlink.RTM_DELROUTE):
                self._stale = parse_default_route(message) is not None
            elif message.type in (netlink.RTM_NEWLINK, netlink.RTM_DELLINK) and (change := parse_link(message)):
                await self._change(change, heard_at)

    async def _look_at_all(self) -> None:
        self._stale = False
        self._heard.clear()  # the dumps below know more
        now = time.monotonic()
        with Netlink() as requests:
            links = requests.dump(netlink.RTM_GETLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
            routes = requests.dump(netlink.RTM_GETROUTE, _ROUTE.pack(*bytes(8), 0))
        self._uplinks = set().union(*(parse_default_route(route) or () for route in routes))
        self._known = {change.ifindex: change.name for change in map(parse_link, links) if change is not None}
        carrying = await asyncio.to_thread(self._attacher.attached)
        for ifindex in carrying.keys() | self.attached.keys():
            if not self._is_pod(ifindex):
                await self._detach(ifindex)
        for ifindex in self._known:
            if self._is_pod(ifindex):
                await self._attach(ifindex, now)

    async def _change(self, change: LinkChange, heard_at: float) -> None:
        if change.name:
            self._known[change.ifindex] = change.name
        else:
            self._known.pop(change.ifindex, None)
            self.failed.pop(change.ifindex, None)
        is_attached = change.ifindex in self.attached
        if not self._is_pod(change.ifindex):
            if is_attached:
                await self._detach(change.ifindex)
        elif is_attached:
            self.attached[change.ifindex] = change.name
        else:
            await self._attach(change.ifindex, heard_at)

    def _is_pod(self, ifindex: int) -> bool:
        name = self._known.get(ifindex, "")
        return bool(name) and ifindex not in self._uplinks and self._admits(name)

    async def _attach(self, ifindex: int, heard_at: float) -> None:
        name = self._known[ifindex]
        try:
            method = await asyncio.to_thread(self._attacher.attach, ifindex)
        except (OSError, NodeError) as error:
            if getattr(error, "errno", None) == errno.ENODEV:
                return  # gone again; its removal follows
            self.failed[ifindex] = str(error)
            self._on_failed()
            log.warning(
                "programs could not be attached: tried again when the link changes", link=name, error=str(error)
            )
            return
        self.failed.pop(ifindex, None)
        if ifindex not in self.attached:
            self._on_attached(time.monotonic() - heard_at)
            log.info("programs attached", link=name, ifindex=ifindex, method=str(method))
        self.attached[ifindex] = name

    async def _detach(self, ifindex: int) -> None:
        name = self.attached.get(ifindex, "")
        try:
            await asyncio.to_thread(self._attacher.detach, ifindex)
        except OSError as error:
            log.warning("programs could not be taken off", link=name, ifindex=ifindex, error=str(error))
        else:
            self.attached.pop(ifindex, None)
            log.info("programs taken off", link=name, ifindex=ifindex)
