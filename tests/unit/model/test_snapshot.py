"""What an object that can't be read does to what is known."""

from __future__ import annotations

import pytest
from simulate import service

from kproxy_ebpf.model.snapshot import Kind, ObjectRef, Refused, Removed, Snapshot, Unreadable, Upserted

WEB = service()
REF = ObjectRef(Kind.SERVICE, *WEB.key)


@pytest.mark.parametrize(("means", "known"), [(Unreadable.ABSENT, set()), (Unreadable.KEPT, {WEB.key})])
def test_a_refused_object_counts_as_its_kind_says(means, known):
    snapshot = Snapshot()
    snapshot.apply(Upserted(REF, WEB))
    dirty = snapshot.apply(Refused(REF, "bad", means))
    assert snapshot.services.keys() == known
    assert set(dirty) == {WEB.key} - known
    assert [refused.reason for refused in snapshot.refused.values()] == ["bad"]


@pytest.mark.parametrize("good", [Upserted(REF, WEB), Removed(REF)])
def test_a_refusal_is_void_once_the_object_is_good_or_gone(good):
    snapshot = Snapshot()
    snapshot.apply(Refused(REF, "bad", Unreadable.ABSENT))
    snapshot.apply(good)
    assert snapshot.refused == {}
