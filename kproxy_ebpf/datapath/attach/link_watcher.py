"""Watches the node's links: attaches the programs to a new pod's link at once, and takes them off with it.

The kernel tells of links by netlink; nothing is polled. Only links whose name a pattern admits are touched, and never a
link with a default route: that is an uplink, whatever its name.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import deque
from collections.abc import Callable

import structlog

from kproxy_ebpf.datapath.attach.tc import Attacher
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux import rtnetlink
from kproxy_ebpf.linux.rtnetlink import LinkChange

log = structlog.get_logger(__name__)


class LinkWatcher:
    """Keeps the programs attached to exactly the pods' links. `run` does the work; the rest may be called meanwhile.

    `admits` returns True for the name of a pod's link; when its answers change, call `reconsider`. `ready` is set when
    the links that existed at the start, or at the last `reconsider`, have been dealt with.

    `on_attached` gets the seconds from the kernel's message until a link had its programs. `on_failed` is called after
    each failed attempt, `on_change` when `attached` or the addresses behind links may have changed.
    """

    def __init__(
        self,
        attacher: Attacher,
        admits: Callable[[str], bool],
        on_attached: Callable[[float], None] = lambda _: None,
        on_failed: Callable[[], None] = lambda: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.attached: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        self._attacher = attacher
        self._admits = admits
        self._on_attached, self._on_failed = on_attached, on_failed
        self._on_change = on_change
        self._known: dict[int, str] = {}
        self._uplinks: set[int] = set()
        self._heard: deque[tuple[float, LinkChange]] = deque()
        self._stale = False
        self._wake = asyncio.Event()
        self._changing = asyncio.Lock()  # `equip` is for tasks other than that of `run`
        self.ready = asyncio.Event()

    def reconsider(self) -> None:
        """Look at all links again; `ready` says when that is done."""
        self.ready.clear()
        self._stale = True
        self._wake.set()

    async def equip(self, ifindex: int, name: str) -> bool:
        """Attach the programs to a link that may not have been heard of yet. True if they are there when this returns,
        False if the link is to have none. Raises NodeError.
        """
        async with self._changing:
            self._known[ifindex] = name
            if not self._is_pod(ifindex):
                return False
            await self._attach(ifindex, time.monotonic())
            if ifindex in self.failed:
                raise NodeError(self.failed[ifindex])
            if ifindex not in self.attached:
                del self._known[ifindex]  # its end may have been heard of before this
                raise NodeError(f"link {name} is gone")
        return True

    async def is_as_wanted(self, ifindex: int, name: str) -> bool:
        """True if the kernel has the programs at that link, or the link is to have none. Raises OSError."""
        if ifindex in self._uplinks or not self._admits(name):
            return True
        return await asyncio.to_thread(self._attacher.is_attached, ifindex)

    async def run(self) -> None:
        """Attach and detach until cancelled. What is attached then stays: the datapath outlives the daemon."""
        async with asyncio.TaskGroup() as group:
            group.create_task(rtnetlink.listen(self._hear, self._on_change))
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._finish()

    def _hear(self, change: LinkChange | None) -> None:
        if change is None:
            self._stale = True
        else:
            self._heard.append((time.monotonic(), change))
        self._wake.set()

    async def _finish(self) -> None:
        """Deal with everything heard so far."""
        while self._stale or self._heard:
            async with self._changing:
                if self._stale:
                    await self._survey()
                else:
                    heard_at, change = self._heard.popleft()
                    await self._change(change, heard_at)

    async def _survey(self) -> None:
        self._stale = False
        self._heard.clear()  # the dumps below know more
        now = time.monotonic()
        self._known = await asyncio.to_thread(rtnetlink.links)
        self._uplinks = await asyncio.to_thread(rtnetlink.uplinks)
        carrying = await asyncio.to_thread(self._attacher.attached)
        for ifindex in carrying.keys() | self.attached.keys():
            if not self._is_pod(ifindex):
                await self._detach(ifindex)
        for ifindex in self._known:
            if self._is_pod(ifindex):
                await self._attach(ifindex, now)
        if not self._stale:  # a `reconsider` meanwhile may have come too late for this survey
            self.ready.set()

    async def _change(self, change: LinkChange, heard_at: float) -> None:
        if change.name:
            self._known[change.ifindex] = change.name
        else:
            self._known.pop(change.ifindex, None)
        is_attached = change.ifindex in self.attached
        if not self._is_pod(change.ifindex):
            if is_attached or change.ifindex in self.failed:
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
                await self._detach(ifindex)  # the link is gone; what was pinned until then would outlive it
                return
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
        self._on_change()

    async def _detach(self, ifindex: int) -> None:
        name = self.attached.get(ifindex) or self._known.get(ifindex, "")
        try:
            await asyncio.to_thread(self._attacher.detach, ifindex)
        except OSError as error:
            log.warning("programs could not be taken off", link=name, ifindex=ifindex, error=str(error))
        else:
            self.attached.pop(ifindex, None)
            self.failed.pop(ifindex, None)
            self._on_change()
            log.info("programs taken off", link=name, ifindex=ifindex)
