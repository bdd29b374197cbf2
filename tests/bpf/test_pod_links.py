"""Lock-free hints: a link is settled only if nothing was made between the scan and the writing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxy_ebpf.contract.layouts import layouts
from kproxy_ebpf.contract.maps import pinned_name
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.pod_links import LinkFacts, PodLinkTable, StandingKind
from kproxy_ebpf.linux.bpf import ARRAY, Map

LINK, OTHER, PLACES = 3, 4, 64
MMAPABLE = 1 << 10
FACTS = LinkFacts(b"\x0a\0\0\1", 0, b"\2\0\0\0\0\1", 7)
KIND = StandingKind.FLOWS


@dataclass
class Links:
    """A table of its own, as the daemon's threads and the programs see it."""

    table: PodLinkTable
    raw: Map

    def make(self) -> None:
        """What a program does: note_made."""
        element = self._element()
        getattr(element, KIND).made = (getattr(element, KIND).made + 1) % 2**32
        self.raw.update(_u32(LINK), bytes(element))

    def unsettle(self) -> None:
        self.table.unsettle(KIND, [LINK])

    def new_facts(self) -> None:
        self.table.tell({LINK: FACTS._replace(bridge=self._element().bridge + 1)})

    @property
    def is_settled(self) -> bool:
        """As the programs read it: may_exist."""
        standing = getattr(self._element(), KIND)
        return bool(standing.settled == (standing.made + 1) % 2**32)

    def begin(self, made: int, settled: int) -> None:
        element = layouts(4).PodLink()
        self.raw.update(_u32(LINK), bytes(element))
        self.table.tell({LINK: FACTS})
        element = self._element()
        getattr(element, KIND).made, getattr(element, KIND).settled = made, settled
        self.raw.update(_u32(LINK), bytes(element))

    def _element(self) -> Any:
        return layouts(4).PodLink.from_buffer_copy(self.raw.lookup(_u32(LINK)) or b"")


@pytest.fixture
def links(bpffs: Path) -> Iterator[Links]:
    pin = bpffs / "maps" / pinned_name("pod_links", 4)
    pin.parent.mkdir()
    with Map.create("pod_links", ARRAY, 4, len(bytes(layouts(4).PodLink())), PLACES, MMAPABLE) as raw:
        raw.pin(pin)
        with PodLinkTable(Generation(bpffs), 4) as table:
            yield Links(table, raw)
    pin.unlink()


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


MEANWHILE: dict[str, list[Callable[[Links], object]]] = {
    "made": [Links.make],
    "unsettled": [Links.unsettle],
    "unsettled twice": [Links.unsettle, Links.unsettle],
    "made and unsettled": [Links.make, Links.unsettle],
    "unsettled and made": [Links.unsettle, Links.make],
    "other facts": [Links.new_facts],
}


@pytest.mark.parametrize("standing", [(0, 0), (5, 5), (5, 2), (2**32 - 1, 2**32 - 1)], ids=str)
@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_what_comes_between_a_look_and_its_end_is_not_undone(
    links: Links, standing: tuple[int, int], meanwhile: str
) -> None:
    links.begin(*standing)
    looked = links.table.unsettled(KIND)
    for happens in MEANWHILE[meanwhile]:
        happens(links)
    links.table.settle(KIND, looked)
    assert not links.is_settled
    links.table.settle(KIND, links.table.unsettled(KIND))
    assert links.is_settled, "the next look"


def test_a_look_at_one_kind_does_not_mind_what_happens_to_others(links: Links) -> None:
    links.begin(5, 5)
    looked = links.table.unsettled(KIND)
    links.table.unsettle(StandingKind.HOST_FLOWS)
    links.table.unsettle(KIND, [OTHER])
    links.table.settle(KIND, looked)
    assert links.is_settled


def test_what_was_made_right_after_it_was_settled_can_be_found(links: Links) -> None:
    links.begin(5, 6)
    assert links.is_settled
    links.make()
    assert not links.is_settled
    links.begin(5, 6)
    links.unsettle()
    assert not links.is_settled
    assert links.table.unsettled(KIND).keys() == {LINK}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    steps=st.lists(st.sampled_from(["make", "unsettle", "look", "settle"]), max_size=30),
    made=st.sampled_from([0, 1, 2**32 - 3]),
)
def test_whatever_the_order_a_link_is_settled_by_a_look_that_nothing_came_after(
    links: Links, steps: list[str], made: int
) -> None:
    links.begin(made, made)
    looked, is_fresh, is_settled = {}, False, False
    for step in steps:
        if step == "look":
            looked, is_fresh = links.table.unsettled(KIND), True
        elif step == "settle":
            links.table.settle(KIND, looked)
            looked, is_settled = {}, is_settled or is_fresh
        else:
            getattr(links, step)()
            is_fresh = is_settled = False
        assert links.is_settled == is_settled


def test_nobody_comes_between_the_last_look_at_the_flag_and_its_writing(
    links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    links.begin(5, 5)
    looked = links.table.unsettled(KIND)
    other = threading.Thread(target=links.unsettle)
    read = PodLinkTable._standing

    def read_and_be_slow(*arguments: Any) -> Any:
        standing = read(*arguments)
        other.start()
        other.join(0.2)
        return standing

    monkeypatch.setattr(PodLinkTable, "_standing", read_and_be_slow)
    links.table.settle(KIND, looked)
    other.join()
    assert not links.is_settled
