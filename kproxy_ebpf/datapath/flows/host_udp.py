"""UDP flows that the host translates become ours, with the backends that they have.

TCP needs none of this: its packets in mid-stream are not balanced, and stay with the host. But no datagram says whether
it is the first of its flow, so without an entry it would be given another backend than kube-proxy chose.

During the import (SWITCH_UDP_STAYS) datagrams of no known flow make flows that change nothing, so kube-proxy gets them.
Where kube-proxy does not translate them either, they lead nowhere: such flows are forgotten after the import.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from contextlib import closing
from dataclasses import replace

from kproxy_ebpf.contract.layouts import Direction, FlowFlags, FlowState
from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.datapath.flows.records import flow_record, flow_value, is_live, live_connections
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.packing import flow_key, now_seconds
from kproxy_ebpf.datapath.maps.pod_links import PodLinkTable, StandingKind
from kproxy_ebpf.datapath.maps.service_tables import ServiceMaps
from kproxy_ebpf.linux.bpf import Map
from kproxy_ebpf.linux.kernel import wait_for_packets_under_way
from kproxy_ebpf.linux.nf_conntrack import Tracked, tracked
from kproxy_ebpf.model.flows import FlowRecord, FlowTuple, mirror_of
from kproxy_ebpf.model.service_tables import FrontendKey, TableContents
from kproxy_ebpf.model.services import Protocol


def import_udp(generation: Generation) -> int:
    """Make flows of all UDP connections that the host translates to frontends of ours; return how many. Raises OSError.

    Datagrams that passed the programs before they were last switched are in the host's table when it is read.
    """
    wait_for_packets_under_way()
    return sum(_import_udp(generation, family) for family in FAMILIES)


def _import_udp(generation: Generation, family: int) -> int:
    connections = _tracked_udp(family)
    if not connections:
        return 0
    return import_flows(generation, family, flows_of_host(family, _contents(generation, family), connections))


def forget_unserved_udp(generation: Generation) -> int:
    """Forget the UDP flows that neither we nor the host lead to a backend: their next datagram is balanced.

    To be called when datagrams no longer stay with the host. Returns how many flows were forgotten. Raises OSError.
    """
    wait_for_packets_under_way()
    return sum(
        forget_unserved(generation, family, _contents(generation, family).frontends, _tracked_udp(family))
        for family in FAMILIES
    )


def _contents(generation: Generation, family: int) -> TableContents:
    with closing(ServiceMaps(generation, family)) as tables:
        return tables.read()


def _tracked_udp(family: int) -> list[Tracked]:
    return [each for each in tracked(family) if each.original.protocol == Protocol.UDP]


def flows_of_host(family: int, contents: TableContents, connections: Iterable[Tracked]) -> Iterator[FlowRecord]:
    """The client's entry for each UDP connection that the host translates and whose destination is a frontend of ours.

    A backend that we do not know gets id 0: the flow learns nothing of its end. The client's link is not known: 0.
    """
    known = {(each.service_id, each.address, each.port): (number, each) for number, each in contents.backends.items()}
    for connection in connections:
        original, reply = connection
        frontend = contents.frontends.get(_frontend_key(original))
        if frontend is None or original.protocol != Protocol.UDP or not connection.is_led_elsewhere:
            continue
        number, backend = known.get((frontend.service_id, reply.source, reply.source_port), (0, None))
        to = replace(original, destination=reply.source, destination_port=reply.source_port, direction=Direction.TO_POD)
        yield FlowRecord(
            family=family,
            tuple=original,
            to=to,
            state=FlowState.ESTABLISHED,
            flags=FlowFlags(0),
            backend_id=number,
            epoch=backend.epoch if backend else 0,
            service_id=frontend.service_id if backend else 0,
            idle_seconds=0,
            age_seconds=0,
            ifindex=0,
        )


def import_flows(generation: Generation, family: int, flows: Iterable[FlowRecord]) -> int:
    """Write both entries of each flow, the reply's first; return how many flows were written. Raises OSError.

    A flow that has a live entry keeps it: packets have gone that way. Links are marked as having flows last. If they
    were marked first, a sweep in between could find no flow and settle the link, and no packet would look these up.
    Until the mark is set, datagrams at a settled link find no flow and stay with the host, which knows them already;
    what they write over the entries here says the same.
    """
    now, count = now_seconds(), 0
    with generation.map("flows", family) as table, PodLinkTable(generation, family) as links:
        for flow in flows:
            present = table.lookup(flow_key(family, flow.tuple))
            if present and is_live(flow_record(family, flow_key(family, flow.tuple), present, now)):
                continue
            for entry in (mirror_of(flow), flow):
                table.update(flow_key(family, entry.tuple), flow_value(entry, now))
            count += 1
        links.unsettle(StandingKind.FLOWS)
    return count


def forget_unserved(
    generation: Generation, family: int, frontends: Container[FrontendKey], connections: Iterable[Tracked]
) -> int:
    """Forget the flows to `frontends` that change nothing and that the host does not lead to a backend either; return
    how many. Otherwise their clients would reach nobody for as long as they send. Raises OSError.

    `connections`: what the host has, read when no more such flows are made.
    """
    with_host = {connection.original for connection in connections if connection.is_led_elsewhere}
    unserved = [
        flow
        for flow in live_connections(generation, family)
        if _changes_nothing(flow) and flow.tuple not in with_host and _frontend_key(flow.tuple) in frontends
    ]
    with generation.map("flows", family) as table:
        for flow in unserved:
            _forget(table, flow)
    return len(unserved)


def _changes_nothing(flow: FlowRecord) -> bool:
    to = flow.to.destination, flow.to.destination_port
    is_for_nobody = not flow.backend_id and to == (flow.tuple.destination, flow.tuple.destination_port)
    return is_for_nobody and flow.tuple.protocol == Protocol.UDP


def _forget(table: Map, flow: FlowRecord) -> None:
    """Remove both entries, as far as they are still those of `flow`. The client's goes first: as long as it stands, a
    datagram that meets it restores the reply's.
    """
    for entry in (flow, mirror_of(flow)):
        key = flow_key(flow.family, entry.tuple)
        present = table.lookup(key)
        if present is not None and flow_record(flow.family, key, present, now_seconds()).to == entry.to:
            table.delete(key)


def _frontend_key(tuple_: FlowTuple) -> FrontendKey:
    return FrontendKey(tuple_.destination, tuple_.destination_port, tuple_.protocol)
