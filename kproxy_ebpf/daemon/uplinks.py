"""The links to other nodes: which of them carry programs, and which addresses are in the cluster."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext

import structlog

from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.datapath.attach.tc import Attacher
from kproxy_ebpf.datapath.forwarding.cluster_networks import ClusterTable, Network, Places, PrefixSet, some_vips
from kproxy_ebpf.datapath.forwarding.uplinks import UplinkTable, leading_out, own_addresses
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.pod_links import unrecorded
from kproxy_ebpf.errors import MapFullError, NodeError
from kproxy_ebpf.linux.rtnetlink import Survey
from kproxy_ebpf.linux.xfrm import has_policies
from kproxy_ebpf.observe.health import Health

log = structlog.get_logger(__name__)

BY_STACK = "packets to other nodes go through the host's stack: "
IPSEC = "it has IPsec policies, which redirected packets would bypass"
NO_UPLINK = "no route leads to {} over an Ethernet link"
HOLDS_VIP = "cluster-cidr {} holds {}, which is no pod's but a Service's: name the pods' networks only"

_REFUSALS = (OSError, NodeError, MapFullError)


class Uplinks:
    """`follow` does everything, in the thread that reads the kernel.

    `wanted` returns the cluster's networks; none where packets are never redirected.
    """

    def __init__(
        self, generation: Generation, attacher: Attacher, wanted: Callable[[], Collection[Network]], health: Health
    ) -> None:
        self._generation, self._attacher, self._wanted, self._health = generation, attacher, wanted, health
        self._places: dict[int, Places] = {family: {} for family in FAMILIES}
        self._carrying: set[int] | None = None  # links that have our programs, as far as we know; None: not read yet

    def cluster(self, family: int) -> PrefixSet:
        """The networks of the cluster that `follow` has last told the programs."""
        return PrefixSet(self._places[family])

    def follow(self, survey: Survey, pods: Collection[int]) -> None:
        """Bring programs and tables in line with routes and settings. `pods`: the links of this node's pods.

        A link is in the table of uplinks only while it carries our programs: the answers to packets that bypass the
        host's stack must bypass it, too. What goes wrong becomes a problem in /healthz, and packets go through the
        host's stack.
        """
        problems: list[str] = []
        networks = self._admitted(problems)
        links = leading_out(survey, networks, pods)
        if networks and not links:
            problems.append(NO_UPLINK.format(", ".join(sorted(map(str, networks)))))
        try:
            self._tell(networks, own_addresses(survey, networks))
            self._keep(links, problems)
        except _REFUSALS as error:
            problems.append(str(error))
        self._health.problem("uplinks", BY_STACK + "; ".join(problems) if problems else None)

    def _admitted(self, problems: list[str]) -> set[Network]:
        """The wanted networks that may be used. Why others may not is appended to `problems`."""
        wanted = set(self._wanted())
        try:
            if wanted and has_policies():
                problems.append(IPSEC)
                return set()
            vips = [vip for family in FAMILIES for vip in some_vips(self._generation, family)] if wanted else []
        except OSError as error:
            problems.append(str(error))
            return set()
        for network in sorted(wanted, key=str):
            if inside := [vip for vip in vips if vip.version == network.version and vip in network]:
                problems.append(HOLDS_VIP.format(network, min(inside, key=int)))
                wanted.remove(network)
        return wanted

    def _keep(self, wanted: set[int], problems: list[str]) -> None:
        """Attach programs to these links and to no others; put back those that somebody took off."""
        with UplinkTable(self._generation) as table:
            told = table.read()
            if self._carrying is None:
                self._carrying = set(self._attacher.attached())
            for ifindex in (told | self._carrying) - wanted:
                table.remove(ifindex)
                self._attacher.detach(ifindex)
                self._carrying.discard(ifindex)
                log.info("programs taken off an uplink", ifindex=ifindex)
            for ifindex in wanted:
                try:
                    self._equip(ifindex, table, is_new=ifindex not in told)
                except _REFUSALS as error:
                    table.remove(ifindex)
                    problems.append(str(error))

    def _equip(self, ifindex: int, table: UplinkTable, *, is_new: bool) -> None:
        """Attach programs to an uplink, and tell the programs of it.

        Connections that left by a new uplink before its programs were attached were not recorded. So links are marked
        unrecorded, and conntrack is read before anything is redirected to it.
        """
        with unrecorded(self._generation) if is_new else nullcontext():
            method = self._attacher.attach(ifindex)
        assert self._carrying is not None  # noqa: S101 - `_keep` came before
        if is_new:
            table.add(ifindex)
        if ifindex not in self._carrying:
            self._carrying.add(ifindex)
            log.info("programs attached to an uplink", ifindex=ifindex, method=str(method))

    def _tell(self, networks: set[Network], own: set[Network]) -> None:
        """Tell the programs which networks are the cluster's, except for the host's `own` addresses."""
        for family in FAMILIES:
            wanted = _of_family(networks, True, family) | _of_family(own, False, family)
            with ClusterTable(self._generation, family) as table:
                present = table.read()
                changed = {place: is_pods for place, is_pods in wanted.items() if present.get(place) != is_pods}
                gone = present.keys() - wanted.keys()
                if changed or gone:
                    with unrecorded(self._generation, (family,)):
                        table.write({place: is_pods for place, is_pods in changed.items() if not is_pods})
                        table.remove(gone)
                        table.write(changed)
            self._places[family] = wanted


def _of_family(networks: Collection[Network], is_pods: bool, family: int) -> Places:
    return dict.fromkeys((network for network in networks if network.version == family), is_pods)
