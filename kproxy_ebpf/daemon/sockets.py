"""The socket fast path of this node: its programs at the cgroup tree, and the sockets whose backends are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from kproxy_ebpf.contract.layouts import BackendState
from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.sockets.cgroup import SocketHooks, find_cgroup, is_attached, netns_cookie
from kproxy_ebpf.datapath.sockets.datagrams import keep_led_datagrams, retire_led_datagrams
from kproxy_ebpf.datapath.sockets.terminate import SocketTerminator
from kproxy_ebpf.errors import NodeError

log = structlog.get_logger(__name__)

_LOST = (BackendState.LEFT, BackendState.GONE)


class Sockets:
    """`problem` says why this node has no socket fast path; None where it has one.

    `cgroup`: the sockets that are served; None: all of the node's.
    """

    def __init__(self, generation: Generation, cgroup: Path | None) -> None:
        self.problem: str | None = None
        self._generation = generation
        self._links = generation.root / "links"
        self._hooks: SocketHooks | None = None
        self._is_attached = False
        self._terminators = _terminators(generation)
        self._lost: dict[int, set[int]] = {family: set() for family in FAMILIES}
        self._wake = asyncio.Event()
        self.host_cookie = 0
        try:
            self.host_cookie = netns_cookie()
            self._hooks = SocketHooks(generation, find_cgroup(cgroup))
        except (NodeError, OSError) as error:
            self._lacking(error)

    def attach(self) -> None:
        """Attach the programs to the cgroup, or bring those attached up to date. `problem` says what goes wrong."""
        if self._hooks is None:
            return
        try:
            self._hooks.attach()
        except OSError as error:
            self._lacking(error)
            return
        self.problem = None
        if not self._is_attached:
            self._is_attached = True
            log.info("socket programs attached", cgroup=str(self._hooks.cgroup))

    def swap(self) -> None:
        """Bring programs that are attached up to date, for an upgrade; attach none where none are. Raises OSError."""
        if self.is_attached:
            self.attach()
            keep_led_datagrams(self._generation)

    def retire_aged(self) -> None:
        """Take off what an upgrade had to leave, once it is not needed any more. Raises OSError."""
        retire_led_datagrams(self._generation)

    @property
    def cgroup(self) -> str | None:
        """The cgroup that the programs are attached to; None while they are not attached."""
        return str(self._hooks.cgroup) if self._hooks is not None and self.is_attached else None

    @property
    def is_attached(self) -> bool:
        """True if programs are attached, even if they are another generation's."""
        return is_attached(self._links)

    def note(self, family: int, states: Mapping[int, tuple[int, int]]) -> None:
        """Note that these states of backends (id: state and flags) are in the maps: sockets of lost ones must end."""
        lost = {number for number, (state, _) in states.items() if state in _LOST}
        if lost:
            self._lost[family] |= lost
            self._wake.set()

    async def catch_up(self) -> None:
        """Terminate the sockets that an earlier daemon did not; to be called before ids are given to other backends."""
        for family in self._terminators:
            await self._terminate(family, None)

    async def terminate(self) -> None:
        """Terminate the sockets of backends that are noted as lost. Never returns."""
        for terminator in self._terminators.values():
            await self._in_thread(terminator.learn)
        while True:
            await self._wake.wait()
            self._wake.clear()
            for family in self._terminators:
                lost, self._lost[family] = self._lost[family], set()
                if lost:
                    await self._terminate(family, lost)

    async def _terminate(self, family: int, backend_ids: set[int] | None) -> None:
        count = await self._in_thread(self._terminators[family].terminate, backend_ids)
        if count:
            log.info("sockets ended: their backends are gone", family=family, sockets=count)

    async def _in_thread(self, work: Callable[..., int | None], *arguments: object) -> int | None:
        if not self.is_attached:
            return None
        try:
            return await asyncio.to_thread(work, *arguments)
        except OSError as error:
            log.warning("sockets whose backend is gone can't be ended", error=str(error))
            return None

    def close(self) -> None:
        for terminator in self._terminators.values():
            terminator.close()
        if self._hooks is not None:
            self._hooks.close()

    def _lacking(self, error: Exception) -> None:
        sentence = f"no socket fast path, tc does the whole job: {error}"
        if sentence != self.problem:
            log.warning(sentence)
        self.problem = sentence


def _terminators(generation: Generation) -> dict[int, SocketTerminator]:
    """By family; none where the kernel can't list sockets."""
    try:
        return {family: SocketTerminator(generation, family) for family in FAMILIES}
    except OSError as error:
        log.warning("open sockets will outlast their backends", error=str(error))
        return {}
