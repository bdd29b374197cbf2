"""An event in the ring buffer, decoded."""

from __future__ import annotations

import pytest

from kproxy_ebpf.contract.layouts import Direction, Event, Verdict
from kproxy_ebpf.datapath.maps.events import VerdictEvent, decode_event


@pytest.mark.parametrize(("family", "size"), [(4, 4), (6, 16)])
def test_decoding(family: int, size: int) -> None:
    raw = Event(time_ns=2**40, ifindex=9, bytes=60, verdict=1, protocol=6, direction=1, family=family)
    for number, name in enumerate(("source", "destination", "to_source", "to_destination"), start=1):
        getattr(raw, name)[:size] = bytes([number]) * size
        setattr(raw, f"{name}_port_be", 1000 + number)
    addresses = [bytes([number]) * size for number in (1, 2, 3, 4)]
    assert decode_event(bytes(raw)) == VerdictEvent(
        time_ns=2**40,
        verdict=Verdict.BALANCED,
        family=family,
        protocol=6,
        direction=Direction.TO_POD,
        ifindex=9,
        length=60,
        source=addresses[0],
        source_port=1001,
        destination=addresses[1],
        destination_port=1002,
        to_source=addresses[2],
        to_source_port=1003,
        to_destination=addresses[3],
        to_destination_port=1004,
    )
    with pytest.raises(ValueError, match="too small"):
        decode_event(bytes(95))
