"""Which links carry the programs: all pods' links; in mode off, until the last flow has ended, and then none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from kproxy_ebpf.config import Forwarding, Settings, SettingsKeeper
from kproxy_ebpf.daemon.datapath import Datapath
from kproxy_ebpf.daemon.short_cut import ShortCut
from kproxy_ebpf.datapath.contract import Switches
from kproxy_ebpf.datapath.links import PodLinks
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics

log = structlog.get_logger(__name__)

DRAIN_SECONDS = 5.0


def switches_of(settings: Settings) -> Switches:
    """What the programs are told of the settings. Mode socket is served at tc until there are programs at connect()."""
    switches = Switches.TC if settings.mode.is_on else Switches(0)
    if settings.mode.is_on and settings.forwarding is Forwarding.REDIRECT:
        switches |= Switches.REDIRECT
    return switches


class Pods:
    """`run` attaches and detaches, `drain` waits for flows to end in mode off, `guard` looks after what is there."""

    def __init__(
        self,
        datapath: Datapath,
        keeper: SettingsKeeper,
        metrics: Metrics,
        health: Health,
        changed: Callable[[], None],
    ) -> None:
        self._datapath, self._keeper, self._health, self._changed = datapath, keeper, health, changed
        self._failures = metrics.attach_failures
        self.short_cut = ShortCut(datapath.generation, self._is_redirecting, health)
        self._drained = not self.is_on and not datapath.has_live_flows()
        self._switched = asyncio.Event()
        self.links = PodLinks(datapath.attacher, self.admits, self._on_attached, self._on_failed, self.short_cut.stir)
        metrics.attached_links.set_function(lambda: len(self.links.attached))
        datapath.switch(switches_of(keeper.current))
        keeper.listen(self._on_settings)

    @property
    def is_on(self) -> bool:
        """Whether new connections need the programs."""
        return self._keeper.current.mode.is_on

    def _is_redirecting(self) -> bool:
        return Switches.REDIRECT in switches_of(self._keeper.current)

    async def forward(self) -> None:
        """Keep what the programs know of pods' addresses and of the host's connections; for ever."""
        await self.short_cut.run(self.links)

    async def drain(self) -> None:
        """In mode off, take the programs off as soon as no flow needs them; for ever."""
        while True:
            if not self.is_on and not self._drained:
                has_flows = await asyncio.to_thread(self._datapath.has_live_flows)
                if not has_flows and not self.is_on:  # the mode may have changed while flows were counted
                    self._drained = True
                    self.links.reconsider()
                    log.info("mode off: the last flow has ended, programs are taken off")
            self._switched.clear()
            try:
                async with asyncio.timeout(None if self.is_on or self._drained else DRAIN_SECONDS):
                    await self._switched.wait()
            except TimeoutError:
                continue

    async def guard(self, period_seconds: float) -> None:
        """Put back programs that somebody took off a link. Raises NodeError when pins are missing: the next start
        builds them anew.
        """
        while True:
            await asyncio.sleep(period_seconds)
            await asyncio.to_thread(self._datapath.require_pins)
            self.links.reconsider()

    def admits(self, link: str) -> bool:
        return not self._drained and self._keeper.current.is_pod_interface(link)

    def _on_settings(self, _: SettingsKeeper) -> None:
        if self.is_on:
            self._drained = False
        self._datapath.switch(switches_of(self._keeper.current))
        self._switched.set()
        self.links.reconsider()
        self.short_cut.stir()

    def _on_attached(self, _: float) -> None:
        self._tell_failures()

    def _on_failed(self) -> None:
        self._failures.inc()
        self._tell_failures()

    def _tell_failures(self) -> None:
        failed = self.links.failed
        sentence = f"{len(failed)} links without programs, such as: {next(iter(failed.values()))}" if failed else None
        self._health.problem("links", sentence)
        self._changed()
