"""Which links carry the programs: all pods' links; in mode off, until the last flow has ended, and then none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from kproxy_ebpf.config import Settings, SettingsKeeper
from kproxy_ebpf.daemon.datapath import Datapath
from kproxy_ebpf.datapath.contract import Switches
from kproxy_ebpf.datapath.links import PodLinks
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics

log = structlog.get_logger(__name__)

DRAIN_SECONDS = 5.0


def switches_of(settings: Settings) -> Switches:
    """What the programs are told of the settings. Mode socket is served at tc until there are programs at connect()."""
    return Switches.TC if settings.mode.is_on else Switches(0)


class Pods:
    """`links` attaches and detaches, `follow` does what the settings say, `guard` looks after what is there."""

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
        self._drained = not self.is_on and not datapath.has_live_flows()
        self._changed_settings = asyncio.Event()
        self.switched = asyncio.Event()  # the settings of the start are in force
        self.links = PodLinks(datapath.attacher, self.admits, self._on_attached, self._on_failed)
        metrics.attached_links.set_function(lambda: len(self.links.attached))
        keeper.listen(self._on_settings)

    @property
    def is_on(self) -> bool:
        """Whether new connections need the programs."""
        return self._keeper.current.mode.is_on

    async def follow(self) -> None:
        """Switch as the settings say; in mode off, take the programs off as soon as no flow needs them; for ever."""
        while True:
            await self._switch()
            if self._changed_settings.is_set():
                continue
            self.switched.set()
            if not self.is_on and not self._drained:
                has_flows = await asyncio.to_thread(self._datapath.has_live_flows)
                if not has_flows and not self.is_on:  # the mode may have changed while flows were counted
                    self._drained = True
                    self.links.reconsider()
                    log.info("mode off: the last flow has ended, programs are taken off")
            try:
                async with asyncio.timeout(None if self.is_on or self._drained else DRAIN_SECONDS):
                    await self._changed_settings.wait()
            except TimeoutError:
                continue

    async def _switch(self) -> None:
        """Let the programs do what the settings say. The UDP flows that the host has are known before any is balanced:
        those that speak while programs are attached and they are being looked for stay with the host.
        """
        self._changed_settings.clear()
        wanted, present = switches_of(self._keeper.current), self._datapath.switches
        has_just_come = not present & Switches.TC or present & Switches.UDP_STAYS
        self._datapath.switch(wanted | Switches.UDP_STAYS if has_just_come else wanted)
        if wanted & Switches.TC:
            await self.links.ready.wait()
            await asyncio.to_thread(self._datapath.adopt_udp)
        self._datapath.switch(wanted)

    async def guard(self, period_seconds: float) -> None:
        """Put back programs that somebody took off a link; retire what an upgrade had to leave. Raises NodeError when
        pins are missing: the next start builds them anew.
        """
        while True:
            await asyncio.sleep(period_seconds)
            await asyncio.to_thread(self._datapath.require_pins)
            await asyncio.to_thread(self._datapath.retire_aged)
            self.links.reconsider()

    def admits(self, link: str) -> bool:
        return not self._drained and self._keeper.current.is_pod_interface(link)

    def _on_settings(self, _: SettingsKeeper) -> None:
        if self.is_on:
            self._drained = False
        self._changed_settings.set()
        self.links.reconsider()

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
