"""The links to other nodes: programs at them where packets may be redirected, and what is in the cluster."""

from __future__ import annotations

from collections.abc import Callable, Collection

import structlog

from kproxy_ebpf.datapath.attach import Attacher
from kproxy_ebpf.datapath.build import FAMILIES
from kproxy_ebpf.datapath.cluster import ClusterTable, Network, PrefixSet
from kproxy_ebpf.datapath.generation import Generation
from kproxy_ebpf.datapath.kernel import wait_for_packets_under_way
from kproxy_ebpf.datapath.pod_links import unrecord
from kproxy_ebpf.datapath.rtnetlink import Survey
from kproxy_ebpf.datapath.uplinks import UplinkTable, leading_out
from kproxy_ebpf.datapath.xfrm import has_policies
from kproxy_ebpf.errors import MapFullError, NodeError
from kproxy_ebpf.observe.health import Health

log = structlog.get_logger(__name__)

IPSEC = "packets to other nodes go through the host's stack: it has IPsec policies, which the short cut would pass by"
NO_UPLINK = "packets to other nodes go through the host's stack: no route leads to {} over an Ethernet link"


class Uplinks:
    """`follow` does everything, in the thread that reads the kernel. `wanted` says which networks are the cluster's,
    none where packets are never redirected.
    """

    def __init__(
        self, generation: Generation, attacher: Attacher, wanted: Callable[[], Collection[Network]], health: Health
    ) -> None:
        self._generation, self._attacher, self._wanted, self._health = generation, attacher, wanted, health
        self._networks: set[Network] = set()

    def cluster(self, family: int) -> PrefixSet:
        """What `follow` has last told the programs."""
        return PrefixSet(_of_family(self._networks, family))

    def follow(self, survey: Survey, inward: Collection[int]) -> None:
        """Bring programs and tables in line with routes and settings. `inward`: pods' links and bridges.

        A link is told to the programs while its own are there: what goes out past the stack comes back past it.
        Raises OSError.
        """
        networks, problem = set(self._wanted()), None
        if networks and has_policies():
            networks, problem = set(), IPSEC
        links = leading_out(survey, networks, inward)
        if networks and not links:
            problem = NO_UPLINK.format(", ".join(map(str, sorted(map(str, networks)))))
        try:
            self._tell(networks)
            self._keep(links)
        except (OSError, NodeError, MapFullError) as error:
            problem = f"packets to other nodes go through the host's stack: {error}"
        self._health.problem("uplinks", problem)

    def _keep(self, wanted: set[int]) -> None:
        """Programs at these links, and at no others. Those that somebody took off are put back."""
        with UplinkTable(self._generation) as table:
            told, carrying = table.read(), self._attacher.attached()
            for ifindex in (told | carrying.keys()) - wanted:
                table.remove(ifindex)
                self._attacher.detach(ifindex)
                log.info("programs taken off an uplink", ifindex=ifindex)
            for ifindex in wanted:
                method = self._attacher.attach(ifindex)
                if ifindex not in told:
                    table.add(ifindex)
                if ifindex not in carrying:
                    log.info("programs attached to an uplink", ifindex=ifindex, method=str(method))

    def _tell(self, networks: set[Network]) -> None:
        """Which networks are the cluster's. A connection with one that is new may have begun the host's way unnoticed,
        until the last packet that met the old table has been dealt with: it is looked for in conntrack first.
        """
        for family in FAMILIES:
            wanted = _of_family(networks, family)
            with ClusterTable(self._generation, family) as table:
                present = table.read()
                table.remove(present - wanted)
                if new := wanted - present:
                    unrecord(self._generation, family)
                    table.add(new)
                    wait_for_packets_under_way()
                    unrecord(self._generation, family)
        self._networks = networks


def _of_family(networks: Collection[Network], family: int) -> set[Network]:
    return {network for network in networks if network.version == family}
