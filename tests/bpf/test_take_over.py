"""Flows at an upgrade: made meanwhile, after a take-over that was killed, unreadable for the next generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from generations import add_flow, change, flow_states, predecessors, relayout

from kproxy_ebpf.datapath.generations.generation import Generation, ensure
from kproxy_ebpf.datapath.generations.schema import write_layouts
from kproxy_ebpf.datapath.generations.sources import Constants


def test_flows_made_meanwhile_follow(filled: Generation, bpffs: Path, small: Constants) -> None:
    second = ensure(bpffs, replace(small, flows_max=2048))
    closing, open_ = add_flow(filled, 2, state=2), add_flow(filled, 3, state=1)
    second.copy_flows()
    assert flow_states(second) == flow_states(filled)
    assert len(predecessors(second)) == 6
    second.activate()
    further, added = add_flow(filled, 3, state=2), add_flow(filled, 4)
    add_flow(second, 2, state=3)
    second.retire_others()
    states = flow_states(second)
    assert (states[closing], states[further], states[added]) == (3, 2, 0), "the later state counts"
    assert open_ == further
    assert predecessors(second) == []
    assert not filled.path.exists()


def test_a_takeover_that_was_killed_is_ended_by_the_next(filled: Generation, bpffs: Path, small: Constants) -> None:
    second = ensure(bpffs, replace(small, flows_max=2048))
    second.copy_flows()
    second.activate()
    added = add_flow(filled, 2)
    again = ensure(bpffs, replace(small, flows_max=2048))
    assert again == second
    assert again.ready
    again.copy_flows()
    assert len(predecessors(again)) == 6
    again.activate()
    again.retire_others()
    assert added in flow_states(again)
    assert predecessors(again) == []
    assert not filled.path.exists()


@pytest.mark.parametrize(
    "change_text",
    [
        lambda text: text["flows_v4"]["value"].update(epoch=[12, 8]),
        lambda text: text["flows_v4"]["value"].update(epoch=[1000, 4]),
        lambda text: text.pop("flows_v6"),
        lambda text: text.clear(),
    ],
    ids=["a size", "nonsense", "a table", "everything"],
)
def test_flows_that_can_not_be_read_stay_with_their_programs(
    filled: Generation,
    bpffs: Path,
    small: Constants,
    sources: Path,
    change_text: Callable[[dict[str, object]], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relayout(filled, change_text)
    change(sources, "#include", "/* another text */\n#include")
    second = ensure(bpffs, small, sources)
    second.copy_flows()
    second.activate()
    for _ in range(2):  # and at the next start
        second.retire_others()
        assert len(predecessors(second)) == 6
        assert filled.is_complete
    change(sources, "#include", "/* a third */\n#include")
    third = ensure(bpffs, small, sources)
    third.copy_flows()
    assert predecessors(third) == predecessors(second), "handed on from one generation to the next"
    third.activate()
    third.retire_others()
    assert not second.path.exists()
    third.retire_aged()
    assert filled.is_complete
    monkeypatch.setattr("kproxy_ebpf.datapath.generations.generation.KEPT_SECONDS", 0)
    third.retire_aged()
    assert not filled.path.exists()
    assert predecessors(third) == []


def test_back_to_a_generation_that_still_serves_its_flows(
    filled: Generation, bpffs: Path, small: Constants, sources: Path
) -> None:
    original = filled.path
    relayout(filled, lambda text: text["flows_v4"]["value"].update(epoch=[12, 8]))
    change(sources, "#include", "/* another text */\n#include")
    second = ensure(bpffs, small, sources)
    second.copy_flows()
    second.activate()
    second.retire_others()
    assert len(predecessors(second)) == 6
    write_layouts(original)  # to itself it is readable
    back = ensure(bpffs, small)
    assert back.path == original
    kept = original.with_name(f"old-{original.name}")
    assert Generation(kept).is_complete
    flows = flow_states(Generation(kept))
    back.copy_flows()
    back.activate()
    back.retire_others()
    assert flow_states(back) == flows
    assert not kept.exists()
