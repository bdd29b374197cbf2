"""UDP flows that the host translates become ours, with the backends that they have.

TCP needs none of this: in mid-stream it is not looked up, and stays with the host. Of a datagram nobody can tell
whether it is the first: without a flow it would be given another backend than the one that kube-proxy chose.

While the host's are being looked for (SWITCH_UDP_STAYS), datagrams of no known flow make flows that change nothing.
Most are kube-proxy's then; those that it has not taken lead nowhere, and are released afterwards.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace

from kproxy_ebpf.contract.layouts import Direction, FlowFlags, FlowState
from kproxy_ebpf.datapath.flows.records import flow_key, flow_record, flow_value, is_live, live_connections, now_seconds
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.pod_links import PodLinkTable, StandingKind
from kproxy_ebpf.linux.bpf import Map
from kproxy_ebpf.linux.nf_conntrack import Tracked
from kproxy_ebpf.model.flows import FlowRecord, FlowTuple, mirror_of
from kproxy_ebpf.model.service_tables import FrontendKey, TableContents
from kproxy_ebpf.model.services import Protocol


def flows_of_host(family: int, contents: TableContents, connections: Iterable[Tracked]) -> Iterator[FlowRecord]:
    """The client's entry for each translated connection to a frontend of ours. A backend that we do not know has id 0:
    nothing will be learned of it. Which link the client is behind is not known either.
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
    """Write both entries of each flow, the reply's first; return how many. One that has a live entry stays: its
    packets went that way. Raises OSError.

    That there are flows is told last: told before, a sweep could look in between, find none and settle the link, and
    nobody would look these up. Until it is told, datagrams at a settled link find no flow and stay with the host, which
    has them already; what they write over the entries here says the same.
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
    """Forget the flows to `frontends` that change nothing, and that the host does not lead to a backend either: their
    clients would talk to nobody for as long as they talk. Return how many. Raises OSError.

    `connections`: what the host has, read when no more such flows are made.
    """
    with_host = {connection.original for connection in connections if connection.is_led_elsewhere}
    released = [
        flow
        for flow in live_connections(generation, family)
        if _changes_nothing(flow) and flow.tuple not in with_host and _frontend_key(flow.tuple) in frontends
    ]
    with generation.map("flows", family) as table:
        for flow in released:
            _forget(table, flow)
    return len(released)


def _changes_nothing(flow: FlowRecord) -> bool:
    to = flow.to.destination, flow.to.destination_port
    is_for_nobody = not flow.backend_id and to == (flow.tuple.destination, flow.tuple.destination_port)
    return is_for_nobody and flow.tuple.protocol == Protocol.UDP


def _forget(table: Map, flow: FlowRecord) -> None:
    """Remove both entries, as far as they are still those of `flow`. The client's first: beside the other a datagram
    would put it back.
    """
    for entry in (flow, mirror_of(flow)):
        key = flow_key(flow.family, entry.tuple)
        present = table.lookup(key)
        if present is not None and flow_record(flow.family, key, present, now_seconds()).to == entry.to:
            table.delete(key)


def _frontend_key(tuple_: FlowTuple) -> FrontendKey:
    return FrontendKey(tuple_.destination, tuple_.destination_port, tuple_.protocol)
