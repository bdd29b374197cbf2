"""The datapath of this node, from the daemon's side: the generation in force, its tables, and what is switched on."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext

import structlog

from kproxy_ebpf.contract.layouts import Switches
from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.daemon.flows import Flows
from kproxy_ebpf.daemon.options import Options
from kproxy_ebpf.daemon.sockets import Sockets
from kproxy_ebpf.datapath.attach.tc import AT_UPLINKS, Attacher, Method
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.pod_links import unrecorded
from kproxy_ebpf.datapath.maps.service_tables import ServiceMaps
from kproxy_ebpf.datapath.maps.settings import LiveSettings
from kproxy_ebpf.datapath.take_over import take_over
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.model.service_tables import TableWrites
from kproxy_ebpf.plan.tables.services import Capacities, Tables

log = structlog.get_logger(__name__)


class Datapath:
    """One generation. It serves pods from `take_over` on.

    `flows` and `sockets` are what it has of each; `attacher` attaches to pods' links, `uplink_attacher` to uplinks.
    """

    def __init__(self, generation: Generation, options: Options) -> None:
        self.generation = generation
        self.has_taken_over = False
        self.flows = Flows(generation)
        self.sockets = Sockets(generation, options.cgroup)
        sizes = {name: getattr(options.constants, f"{name}_max") for name in Capacities.__dataclass_fields__}
        self._capacities = Capacities(**sizes)
        method = Method(options.attach)
        self.attacher = Attacher(generation, method)
        self.uplink_attacher = Attacher(generation, method, AT_UPLINKS)
        self._maps = {family: ServiceMaps(generation, family) for family in FAMILIES}
        self._live = LiveSettings(generation)

    @property
    def is_ready(self) -> bool:
        """True if its tables hold enough to serve at once; otherwise they wait for the first sync."""
        return self.generation.ready

    async def take_over(self) -> None:
        """Make this generation the one in force, on every link; remove all others. Raises OSError."""
        await asyncio.to_thread(self._take_over)
        self.has_taken_over = True

    def _take_over(self) -> None:
        take_over(self.generation, (self.uplink_attacher, self.attacher), self.sockets.swap)
        if not self.attacher.attached():
            self.flows.forget()

    @property
    def switches(self) -> Switches:
        """What new connections meet."""
        return self._live.switches()

    def switch(self, switches: Switches) -> None:
        """What new connections meet from now on; those that exist go on as they began.

        Turning redirect on marks every link as unrecorded: connections that began through the host unnoticed are looked
        for before packets are redirected. That blocks for some milliseconds.
        """
        turns_on = Switches.REDIRECT in switches and Switches.REDIRECT not in self._live.switches()
        with unrecorded(self.generation) if turns_on else nullcontext():
            self._live.switch(switches)

    def offer_sockets(self) -> None:
        """Make what Switches.SOCKET needs, as far as this node has it: see `sockets.problem`."""
        if self.sockets.host_cookie:
            self._live.set_host(self.sockets.host_cookie)
        self.sockets.attach()

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

    def require_pins(self) -> None:
        """Raises NodeError where somebody removed what is pinned."""
        if not (self.generation.is_current and self.generation.is_complete):
            raise NodeError(f"pins are missing in {self.generation.path}: the next start builds them anew")

    def retire_aged(self) -> None:
        """Remove programs of before that an upgrade had to keep, once nothing of theirs can live any more."""
        self.generation.retire_aged()
        self.sockets.retire_aged()

    def close(self) -> None:
        """Close descriptors; pins and attachments stay."""
        self.attacher.close()
        self.uplink_attacher.close()
        self.sockets.close()
        self._live.close()
        for maps in self._maps.values():
            maps.close()
