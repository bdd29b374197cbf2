"""The connections that go through the host's stack, as far as the programs have to know them.

The programs record a connection between known pods when its first packet goes through the host. Connections that began
before they recorded are added here from the host's conntrack, and those that conntrack has forgotten are removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kproxy_ebpf.contract.layouts import HostFlow
from kproxy_ebpf.datapath.forwarding.cluster_networks import PrefixSet
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.packing import flow_key, now_seconds, packer
from kproxy_ebpf.datapath.maps.pod_links import PodLinkTable, StandingKind
from kproxy_ebpf.linux import nf_conntrack
from kproxy_ebpf.linux.nf_conntrack import Tracked

_VALUE = packer(HostFlow, "ifindex", "created_seconds")
_GRACE_SECONDS = 1  # conntrack was read while an entry this young was made


class HostFlowsSynced(NamedTuple):
    """How many entries host_flows has after a sync, how many of them the sync added, and how many it removed."""

    entries: int
    added: int
    removed: int


def needs_sync(generation: Generation, family: int) -> bool:
    """True if anything is unsettled that a sync could settle."""
    with PodLinkTable(generation, family) as table:
        return bool(table.unsettled(StandingKind.HOST_FLOWS) or table.unsettled(StandingKind.UNRECORDED))


def sync_host_flows(
    generation: Generation, family: int, pods: Mapping[bytes, int], cluster: PrefixSet
) -> HostFlowsSynced:
    """Bring host_flows in line with conntrack, and settle the links without such connections.

    `pods`: the links of this node's pods by address; `cluster`: the networks of other nodes' pods. Raises OSError where
    conntrack can't be read, MapFullError where host_flows is full: then nothing is settled, and the packets of those
    links go through the host.
    """
    with PodLinkTable(generation, family) as table, generation.map("host_flows", family) as flows:
        unrecorded, unsettled = table.unsettled(StandingKind.UNRECORDED), table.unsettled(StandingKind.HOST_FLOWS)
        began = now_seconds()
        followed = _followed(family, nf_conntrack.tracked(family), pods, cluster)
        in_use: set[int] = set()
        removed = 0
        present = dict(flows.items())
        for key in present:
            value = flows.lookup(key)
            if value is None:
                continue
            ifindex, created = _VALUE.unpack(value)
            if key in followed or created >= began - _GRACE_SECONDS:
                in_use.add(ifindex)
            else:
                removed += flows.delete(key)
        missing = {
            key: each.ifindex for key, each in followed.items() if key not in present and each.links & unrecorded.keys()
        }
        table.unsettle(StandingKind.HOST_FLOWS, missing.values())
        flows.update_batch(b"".join(missing), b"".join(_VALUE.pack(each, began) for each in missing.values()))
        in_use.update(missing.values())
        table.settle(StandingKind.HOST_FLOWS, {link: each for link, each in unsettled.items() if link not in in_use})
        table.settle(StandingKind.UNRECORDED, unrecorded)
        return HostFlowsSynced(len(present) - removed + len(missing), len(missing), removed)


class _Followed(NamedTuple):
    ifindex: int  # the link that counts it
    links: frozenset[int]  # of the pods of this node at its ends


def _followed(
    family: int, connections: list[Tracked], pods: Mapping[bytes, int], cluster: PrefixSet
) -> dict[bytes, _Followed]:
    """The connections whose packets could be redirected, by their keys in host_flows.

    One end is a pod of this node, the other a pod of this node or an address in the cluster. A connection that the host
    translates has two tuples. Each counts in both directions, for an ICMP error is known by the packet that it quotes.
    """
    found = {}
    for original, reply in connections:
        for way in (original,) if original == reply.reversed() else (original, reply):
            links = frozenset(filter(None, map(pods.get, (way.source, way.destination))))
            if links and all(end in pods or cluster.covers(end) for end in (way.source, way.destination)):
                followed = _Followed(pods.get(reply.source) or min(links), links)
                found[flow_key(family, way)] = found[flow_key(family, way.reversed())] = followed
    return found
