"""What each mode means: which switches are on, and which links carry the programs.

In modes tc and hybrid the programs are attached to all pods' links, and with redirect in every mode that is on. In the
other modes they stay attached until the last flow has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import structlog

from kproxy_ebpf.config import Forwarding, Mode, Settings, SettingsKeeper
from kproxy_ebpf.contract.layouts import Switches
from kproxy_ebpf.daemon.datapath import Datapath
from kproxy_ebpf.daemon.forwarding import ForwardingTables
from kproxy_ebpf.daemon.redirect import RedirectReport, RedirectTeller
from kproxy_ebpf.daemon.uplinks import Uplinks
from kproxy_ebpf.datapath.attach.link_watcher import LinkWatcher
from kproxy_ebpf.datapath.forwarding.cluster_networks import Network
from kproxy_ebpf.linux.kernel import redirects
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics

log = structlog.get_logger(__name__)

DRAIN_SECONDS = 5.0
NO_REDIRECT = "forwarding redirect is served as stack: this kernel can't do it (see kproxy-ebpf check)"

_SWITCHES = {
    Mode.OFF: Switches(0),
    Mode.TC: Switches.TC,
    Mode.SOCKET: Switches.SOCKET,
    Mode.HYBRID: Switches.TC | Switches.SOCKET,
}
_AT_LINKS = Switches.TC | Switches.REDIRECT


def switches_of(settings: Settings, *, has_sockets: bool) -> Switches:
    """The switches that the settings ask for. On a node without a socket fast path, mode tc takes its place."""
    mode = Mode.TC if settings.mode.has_sockets and not has_sockets else settings.mode
    redirects = mode.is_on and settings.forwarding is Forwarding.REDIRECT
    return _SWITCHES[mode] | (Switches.REDIRECT if redirects else Switches(0))


class ModeSwitch:
    """Puts the mode of the settings into force: `follow` switches, `guard` repairs, `links` attaches and detaches.

    `forwarding` keeps what redirect needs to know. Run all four as tasks; `switched` says that the settings are in
    force.
    """

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
        uplinks = Uplinks(datapath.generation, datapath.uplink_attacher, self._cluster, health)
        self._redirect = RedirectTeller(metrics, health)
        self.forwarding = ForwardingTables(
            datapath.generation, uplinks, self._is_redirecting, health, self._on_redirect_report
        )
        self._drained = not self.is_on and not datapath.flows.has_live()
        self._changed_settings = asyncio.Event()
        self.switched = asyncio.Event()
        self.links = LinkWatcher(
            datapath.attacher, self.admits, self._on_attached, self._on_failed, self.forwarding.wake
        )
        metrics.attached_links.set_function(lambda: len(self.links.attached))
        keeper.listen(self._on_settings)

    @property
    def is_on(self) -> bool:
        """True if new connections need the programs at the links."""
        return bool(self._wanted & _AT_LINKS)

    def missing(self) -> dict[str, str]:
        """What still keeps the mode from being in force, by topic. Links count in modes that need programs there."""
        missing = {}
        if not self._datapath.has_taken_over:
            missing["datapath"] = "the programs have not yet taken over this node"
        if not self.switched.is_set():
            missing["mode"] = f"mode {self._keeper.current.mode} is not yet in force"
        if self.is_on and self.links.failed:
            missing["links"] = self._failures_sentence()
        return missing

    @property
    def cgroup(self) -> str | None:
        """The cgroup whose sockets have the programs; None while they are not attached."""
        return self._datapath.sockets.cgroup

    @property
    def redirect(self) -> RedirectReport | None:
        """Which links redirect serves; None while it serves none since it is off."""
        return self._redirect.report

    @property
    def _wanted(self) -> Switches:
        switches = switches_of(self._keeper.current, has_sockets=self._datapath.sockets.problem is None)
        return switches if redirects() else switches & ~Switches.REDIRECT

    def _is_redirecting(self) -> bool:
        """True if the programs redirect already. Until then, reading conntrack would miss what begins afterwards."""
        return Switches.REDIRECT in self._datapath.switches

    def _cluster(self) -> Collection[Network]:
        """The cluster's networks, whatever the forwarding: what redirect needs is there before it is switched on."""
        settings = self._keeper.current
        return settings.cluster_cidr if settings.mode.is_on and redirects() else ()

    async def follow(self) -> None:
        """Switch as the settings say; take the programs off links as soon as no flow needs them. Never returns."""
        while True:
            await self._switch()
            if self._changed_settings.is_set():
                continue
            self.switched.set()
            if not self.is_on and not self._drained:
                has_flows = await asyncio.to_thread(self._datapath.flows.has_live)
                if not has_flows and not self.is_on:  # the mode may have changed while flows were counted
                    self._drained = True
                    self.links.reconsider()
                    log.info("the last flow has ended, programs are taken off")
            try:
                async with asyncio.timeout(None if self.is_on or self._drained else DRAIN_SECONDS):
                    await self._changed_settings.wait()
            except TimeoutError:
                continue

    async def _switch(self) -> None:
        """Let the programs do what the settings say.

        Import the UDP flows that kube-proxy translates before balancing UDP. Datagrams that arrive during the import
        are left to the host.
        """
        self._changed_settings.clear()
        self._offer_sockets()
        await self._return_to_links()
        asks_in_vain = self._keeper.current.forwarding is Forwarding.REDIRECT and not redirects()
        self._health.problem("redirect", NO_REDIRECT if asks_in_vain else None)
        wanted, present = self._wanted, self._datapath.switches
        has_just_come = not present & Switches.TC or present & Switches.UDP_STAYS
        await asyncio.to_thread(self._datapath.switch, wanted | Switches.UDP_STAYS if has_just_come else wanted)
        self.forwarding.wake()
        if wanted & Switches.TC:
            await self.links.ready.wait()
            await asyncio.to_thread(self._datapath.flows.import_udp)
        self._datapath.switch(wanted)
        if wanted & Switches.TC and has_just_come:
            await asyncio.to_thread(self._datapath.flows.forget_unserved_udp)

    async def _return_to_links(self) -> None:
        """Attach programs to links again that have none, after all flows of before are forgotten."""
        if self.is_on and self._drained:
            await asyncio.to_thread(self._datapath.flows.forget)
            self._drained = False
            self.links.reconsider()

    async def guard(self, period_seconds: float) -> None:
        """Put back programs that somebody took off a link; retire what an upgrade had to leave. Never returns.

        Raises NodeError when pins are missing: the next start builds them anew.
        """
        while True:
            await asyncio.sleep(period_seconds)
            await asyncio.to_thread(self._datapath.require_pins)
            await asyncio.to_thread(self._datapath.retire_aged)
            before = self._datapath.sockets.problem
            self._offer_sockets()
            if self._datapath.sockets.problem != before:
                self._changed_settings.set()
            self.links.reconsider()

    def _offer_sockets(self) -> None:
        """Attach the socket programs once a mode wants them. From then on they stay attached in every mode."""
        sockets, wants = self._datapath.sockets, self._keeper.current.mode.has_sockets
        if wants or sockets.is_attached:
            self._datapath.offer_sockets()
        self._health.problem("sockets", sockets.problem if wants else None)

    def admits(self, link: str) -> bool:
        return not self._drained and self._keeper.current.is_pod_interface(link)

    def _on_settings(self, _: SettingsKeeper) -> None:
        self.switched.clear()
        self._changed_settings.set()
        self.links.reconsider()
        self.forwarding.wake()

    def _on_redirect_report(self, report: RedirectReport | None) -> None:
        if self._redirect.tell(report):
            self._changed()

    def _on_attached(self, _: float) -> None:
        self._tell_failures()

    def _on_failed(self) -> None:
        self._failures.inc()
        self._tell_failures()

    def _tell_failures(self) -> None:
        self._health.problem("links", self._failures_sentence() if self.links.failed else None)
        self._changed()

    def _failures_sentence(self) -> str:
        failed = self.links.failed
        return f"{len(failed)} links without programs, such as: {next(iter(failed.values()))}"
