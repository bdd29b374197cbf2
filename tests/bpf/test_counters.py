"""Counters of the programs, read by the daemon."""

from __future__ import annotations

import struct

from harness import u32

from kproxy_ebpf.contract.layouts import Verdict
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.counters import Counters


def test_counters_add_up_all_cpus(generation: Generation) -> None:
    with generation.map("counters") as counters:
        before = counters.lookup(u32(Verdict.REVERSED))
        assert before is not None
        cpus = len(before) // 16
        counters.update(u32(Verdict.REVERSED), struct.pack("=QQ", 2, 300) * cpus)
        reader = Counters(generation)
        assert reader.read()[Verdict.REVERSED] == (2 * cpus, 300 * cpus)
        assert reader.read()[Verdict.DROPPED_INTERNAL] == (0, 0)
        assert reader.read().keys() == set(Verdict)
        counters.update(u32(Verdict.REVERSED), before)
        reader.close()
