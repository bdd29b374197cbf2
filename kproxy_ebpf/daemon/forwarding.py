"""What redirect needs to know: the pod behind each link, the links to other nodes, and the connections of the host.

A connection that began through the host's stack must stay there: the host's conntrack follows it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.daemon.redirect import RedirectReport
from kproxy_ebpf.daemon.uplinks import Uplinks
from kproxy_ebpf.datapath.attach.link_watcher import LinkWatcher
from kproxy_ebpf.datapath.forwarding.host_flows import needs_sync, sync_host_flows
from kproxy_ebpf.datapath.forwarding.pod_addresses import FoundAddresses, PodAddresses, facts_of
from kproxy_ebpf.datapath.forwarding.pod_table import PodTable
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.observe.health import Health

log = structlog.get_logger(__name__)

SYNC_SECONDS = 5.0
REST_SECONDS = 0.02  # a pod's link, its routes and its neighbours come one after the other
REST_FACTOR = 10.0  # reading costs processor time, and more so where conntrack follows many connections

Addresses = Mapping[int, Mapping[bytes, int]]


class ForwardingTables:
    """Keeps the tables that redirect reads in line with the kernel. `wake` says that something may have changed, and
    `report` takes which links are served, None while nothing is redirected.

    All tables but host_flows are kept while redirect is off, too. So turning it on takes one write, and one reading of
    conntrack.
    """

    def __init__(
        self,
        generation: Generation,
        uplinks: Uplinks,
        is_on: Callable[[], bool],
        health: Health,
        report: Callable[[RedirectReport | None], object] = lambda _: None,
    ) -> None:
        self._generation, self._uplinks, self._is_on, self._health = generation, uplinks, is_on, health
        self._report = report
        self._found: FoundAddresses | None = None
        self._woken = asyncio.Event()
        self._reader = PodAddresses()

    def wake(self) -> None:
        self._woken.set()

    async def run(self, links: LinkWatcher) -> None:
        """Never returns. Raises OSError where the kernel does not answer about links, routes or neighbours."""
        await links.ready.wait()
        while True:
            self._woken.clear()
            cost_seconds = await asyncio.to_thread(self._sync, frozenset(links.attached))
            found = self._found if self._is_on() else None
            self._report(RedirectReport.of(found, links.attached) if found else None)
            await asyncio.sleep(max(REST_SECONDS, REST_FACTOR * cost_seconds))
            try:
                async with asyncio.timeout(SYNC_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _sync(self, links: frozenset[int]) -> float:
        """Bring all tables up to date. Returns the processor seconds that this took: waiting for the kernel to attach
        programs, or for a turn on a busy machine, costs nobody anything and must not put off the next time.
        """
        began = time.thread_time()
        addresses = self._learn(links)
        if self._is_on():
            self._sync_host_flows(addresses)
        return time.thread_time() - began

    def _learn(self, links: frozenset[int]) -> Addresses:
        """Read what the kernel knows, and tell the programs. Returns, by family, the link of each pod's address."""
        with PodTable(self._generation) as table:
            known = table.read()
            found = self._found = self._reader.read(links, known)
            for family in FAMILIES:
                addresses = found.addresses[family]
                table.replace(family, facts_of(found.ports, addresses), found.ports, addresses)
        self._uplinks.follow(found.survey, links)
        return found.addresses

    def _sync_host_flows(self, addresses: Addresses) -> None:
        problem = None
        for family in FAMILIES:
            if not needs_sync(self._generation, family):
                continue
            try:
                synced = sync_host_flows(self._generation, family, addresses[family], self._uplinks.cluster(family))
            except (OSError, MapFullError) as error:
                problem = f"pods stay on the host's way until its connections are known: {error}"
            else:
                if synced.added or synced.removed:
                    log.debug("connections that go the host's way", family=family, **synced._asdict())
        self._health.problem("forwarding", problem)
