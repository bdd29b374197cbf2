"""UDP flows that the host translates become ours, with the backends that they have.

TCP needs none of this: in mid-stream it is not looked up, and stays with the host. Of a datagram nobody can tell
whether it is the first: without a flow it would be given another backend than the one that kube-proxy chose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kproxy_ebpf.datapath.conntrack import Translated
from kproxy_ebpf.datapath.contract import Direction, FlowFlags, FlowState
from kproxy_ebpf.datapath.flows import FlowRecord, FlowTuple, flow_key, flow_record, flow_value, is_live, now_seconds
from kproxy_ebpf.datapath.generation import Generation
from kproxy_ebpf.model.tables import FrontendKey, TableContents


def adopted(family: int, contents: TableContents, connections: Iterable[Translated]) -> Iterator[FlowRecord]:
    """The client's entry for each connection to a frontend of ours. A backend that we do not know has id 0: nothing
    will be learned of it.
    """
    known = {(each.service_id, each.address, each.port): (number, each) for number, each in contents.backends.items()}
    for each in connections:
        frontend = contents.frontends.get(FrontendKey(each.frontend, each.frontend_port, each.protocol))
        if frontend is None:
            continue
        number, backend = known.get((frontend.service_id, each.backend, each.backend_port), (0, None))
        ends = (each.protocol, Direction.FROM_POD), (each.protocol, Direction.TO_POD)
        yield FlowRecord(
            family=family,
            tuple=FlowTuple(each.client, each.client_port, each.frontend, each.frontend_port, *ends[0]),
            to=FlowTuple(each.client, each.client_port, each.backend, each.backend_port, *ends[1]),
            state=FlowState.ESTABLISHED,
            flags=FlowFlags(0),
            backend_id=number,
            epoch=backend.epoch if backend else 0,
            service_id=frontend.service_id if backend else 0,
            idle_seconds=0,
            age_seconds=0,
        )


def insert(generation: Generation, family: int, flows: Iterable[FlowRecord]) -> int:
    """Write both entries of each flow, the reply's first; return how many. One that has a live entry stays: its
    packets went that way. Raises OSError.
    """
    now, count = now_seconds(), 0
    with generation.map("flows", family) as table:
        for flow in flows:
            present = table.lookup(flow_key(family, flow.tuple))
            if present and is_live(flow_record(family, flow_key(family, flow.tuple), present, now)):
                continue
            for entry in (flow.mirrored(), flow):
                table.update(flow_key(family, entry.tuple), flow_value(entry, now))
            count += 1
    return count
