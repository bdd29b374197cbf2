"""UDP flows that the host translates become ours, with the backends that they have.

TCP needs none of this: in mid-stream it is not looked up, and stays with the host. Of a datagram nobody can tell
whether it is the first: without a flow it would be given another backend than the one that kube-proxy chose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from kproxy_ebpf.datapath.conntrack import Tracked
from kproxy_ebpf.datapath.contract import Direction, FlowFlags, FlowState
from kproxy_ebpf.datapath.flows import FlowRecord, flow_key, flow_record, flow_value, is_live, now_seconds
from kproxy_ebpf.datapath.generation import Generation
from kproxy_ebpf.datapath.pod_links import Kind, PodLinkTable
from kproxy_ebpf.model.services import Protocol
from kproxy_ebpf.model.tables import FrontendKey, TableContents


def adopted(family: int, contents: TableContents, connections: Iterable[Tracked]) -> Iterator[FlowRecord]:
    """The client's entry for each translated connection to a frontend of ours. A backend that we do not know has id 0:
    nothing will be learned of it. Which link the client is behind is not known either.
    """
    known = {(each.service_id, each.address, each.port): (number, each) for number, each in contents.backends.items()}
    for original, reply in connections:
        frontend = contents.frontends.get(
            FrontendKey(original.destination, original.destination_port, original.protocol)
        )
        if frontend is None or original.protocol != Protocol.UDP:
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


def insert(generation: Generation, family: int, flows: Iterable[FlowRecord]) -> int:
    """Write both entries of each flow, the reply's first; return how many. One that has a live entry stays: its
    packets went that way. Raises OSError.
    """
    now, count = now_seconds(), 0
    with generation.map("flows", family) as table, PodLinkTable(generation, family) as links:
        links.unsettle(Kind.FLOWS)
        for flow in flows:
            present = table.lookup(flow_key(family, flow.tuple))
            if present and is_live(flow_record(family, flow_key(family, flow.tuple), present, now)):
                continue
            for entry in (flow.mirrored(), flow):
                table.update(flow_key(family, entry.tuple), flow_value(entry, now))
            count += 1
    return count
