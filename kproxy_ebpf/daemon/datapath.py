"""The datapath of this node, from the daemon's side: the generation in force, its tables, its programs on the links."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from pathlib import Path

import structlog

from kproxy_ebpf.contract.layouts import Switches
from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.daemon.options import Options
from kproxy_ebpf.daemon.sockets import Sockets
from kproxy_ebpf.datapath.attach.tc import AT_UPLINKS, Attacher, Method
from kproxy_ebpf.datapath.flows.host_udp import flows_of_host, forget_unserved, import_flows
from kproxy_ebpf.datapath.flows.records import live_connections, now_seconds
from kproxy_ebpf.datapath.flows.sweep import forget_all
from kproxy_ebpf.datapath.generations.generation import Generation, ensure
from kproxy_ebpf.datapath.maps.pod_links import unrecorded
from kproxy_ebpf.datapath.maps.service_tables import Counters, LiveSettings, Occupancy, ServiceMaps, Ways
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux.kernel import require_kernel, wait_for_packets_under_way
from kproxy_ebpf.linux.nf_conntrack import Tracked, tracked
from kproxy_ebpf.model.service_tables import TableWrites
from kproxy_ebpf.model.services import Protocol
from kproxy_ebpf.observe.metrics import DatapathReading
from kproxy_ebpf.plan.tables.services import Capacities, Tables

log = structlog.get_logger(__name__)

UDP_SECONDS = 120  # after that without a datagram no UDP flow is known any more, neither here nor by the host


class Datapath:
    """One generation. Make it with `prepare`; it serves pods from `take_over` on."""

    def __init__(self, generation: Generation, method: Method, capacities: Capacities, cgroup: Path | None) -> None:
        self.generation = generation
        self.sockets = Sockets(generation, cgroup)
        self._capacities = capacities
        self.attacher = Attacher(generation, method)
        self.uplink_attacher = Attacher(generation, method, AT_UPLINKS)
        self._maps = {family: ServiceMaps(generation, family) for family in FAMILIES}
        self._counters, self._ways = Counters(generation), Ways(generation)
        self._live = LiveSettings(generation)
        self._occupancy = Occupancy(generation)

    @classmethod
    async def prepare(cls, options: Options) -> Datapath:
        """Adopt what is pinned, or compile and load. Raises NodeError, LoadError."""
        require_kernel()
        began = time.monotonic()
        generation = await asyncio.to_thread(ensure, options.bpffs, options.constants)
        what = "adopted" if generation.is_current else "built"
        log.info(f"datapath {what}", generation=generation.digest, seconds=round(time.monotonic() - began, 3))
        sizes = {name: getattr(options.constants, f"{name}_max") for name in Capacities.__dataclass_fields__}
        return cls(generation, Method(options.attach), Capacities(**sizes), options.cgroup)

    @property
    def is_ready(self) -> bool:
        """Whether its tables hold enough to serve at once; else it has to wait for the first sync."""
        return self.generation.ready

    async def take_over(self) -> None:
        """Make this generation the one in force, on every link; remove all others."""
        await asyncio.to_thread(self._take_over)

    def _take_over(self) -> None:
        attachers = self.uplink_attacher, self.attacher  # the order of a reply's way: it is known there before it comes
        for attacher in attachers:
            attacher.prune()
        self.generation.inherit()
        self.generation.activate()
        for attacher in attachers:
            attacher.swap(self.generation)
        if self.sockets.is_attached:
            self.sockets.attach()
        self.generation.retire_others()
        if not self.attacher.attached():
            self.forget_flows()

    @property
    def switches(self) -> Switches:
        """What new connections meet."""
        return self._live.switches()

    def switch(self, switches: Switches) -> None:
        """What new connections meet from now on; those that exist go on as they began.

        What began the host's way while nobody noted it is looked for before the short cut is taken. Blocks for some
        milliseconds when that is turned on.
        """
        turns_on = Switches.REDIRECT in switches and Switches.REDIRECT not in self._live.switches()
        with unrecorded(self.generation) if turns_on else nullcontext():
            self._live.switch(switches)

    def offer_sockets(self) -> None:
        """Make what Switches.SOCKET needs, as far as it is to be had: see `sockets.problem`."""
        if self.sockets.host_cookie:
            self._live.set_host(self.sockets.host_cookie)
        if not self.sockets.is_attached:
            self._live.begin_datagrams(now_seconds() + UDP_SECONDS)
        self.sockets.attach()

    def import_udp(self) -> int:
        """Make flows of what the host translates of UDP; return how many. Raises OSError.

        Datagrams that passed the programs before they were last switched are in the host's table when it is read.
        """
        wait_for_packets_under_way()
        return sum(self._adopt_udp(family) for family in FAMILIES)

    def _adopt_udp(self, family: int) -> int:
        connections = _tracked_udp(family)
        if not connections:
            return 0
        return import_flows(self.generation, family, flows_of_host(family, self._maps[family].read(), connections))

    def forget_unserved_udp(self) -> int:
        """Forget the UDP flows that stayed with the host and that it leads nowhere: their next datagram is balanced.
        Return how many. For the time when none stay any more. Raises OSError.
        """
        wait_for_packets_under_way()
        return sum(
            forget_unserved(self.generation, family, self._maps[family].read().frontends, _tracked_udp(family))
            for family in FAMILIES
        )

    def tables(self) -> list[Tables]:
        """The planner's mirror of the tables, as they are now."""
        return [self._adopted(family) for family in FAMILIES]

    def _adopted(self, family: int) -> Tables:
        tables = Tables(family, self._capacities, time.monotonic)
        tables.adopt(self._maps[family].read())
        return tables

    def apply(self, family: int, writes: TableWrites) -> None:
        """Perform writes; see reconcile.TableWriter."""
        self._maps[family].apply(writes)
        self.sockets.note(family, writes.backend_states)

    def reading(self) -> DatapathReading:
        """What the maps say now, for metrics."""
        verdicts = {verdict.name.lower(): count for verdict, count in self._counters.read().items()}
        ways = {way.name.lower(): count for way, count in self._ways.read().items()}
        return DatapathReading(verdicts, self._occupancy.read(), ways)

    def has_live_flows(self) -> bool:
        """Whether any connection still needs the programs."""
        return any(True for family in FAMILIES for _ in live_connections(self.generation, family))

    def forget_flows(self) -> None:
        """For when no link carries programs: connections have ended or gone on without them, and others may have their
        ports. What is known of those would be taken for these once there are programs again. Raises OSError.
        """
        self.generation.retire_kept()
        for family in FAMILIES:
            forget_all(self.generation, family)

    def require_pins(self) -> None:
        """Raises NodeError where somebody removed what is pinned."""
        if not (self.generation.is_current and self.generation.is_complete):
            raise NodeError(f"pins are missing in {self.generation.path}: the next start builds them anew")

    def retire_aged(self) -> None:
        """See Generation."""
        self.generation.retire_aged()

    def close(self) -> None:
        """Close descriptors; pins and attachments stay."""
        self.attacher.close()
        self.uplink_attacher.close()
        self.sockets.close()
        self._counters.close()
        self._ways.close()
        self._live.close()
        for maps in self._maps.values():
            maps.close()


def _tracked_udp(family: int) -> list[Tracked]:
    return [each for each in tracked(family) if each.original.protocol == Protocol.UDP]
