"""The table of kinds, and who loops over it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from fake_api import FakeApi
from typing_extensions import TypedDict

from kproxy_ebpf.kube import kinds
from kproxy_ebpf.kube.addresses import Refusal
from kproxy_ebpf.kube.client import Client
from kproxy_ebpf.kube.kinds.common import ApiKind, Scope
from kproxy_ebpf.kube.manifests import ManifestSource
from kproxy_ebpf.kube.source import ApiSource
from kproxy_ebpf.kube.wire import Metadata
from kproxy_ebpf.model.snapshot import WATCHED_KINDS, Event, Kind, ObjectRef, Refused, Synced, Unreadable, Upserted

GADGETS = "/apis/example.com/v1/gadgets"
NEW = cast(Kind, "Gadget")
GOOD = {"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "good", "namespace": "shop"}}
BAD = {"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "bad", "namespace": "shop"}, "bad": True}


class Gadget(TypedDict, total=False):
    metadata: Metadata
    bad: bool


def gadget_of(obj: Any, scope: Scope) -> Any:
    if obj["metadata"]["name"] == "odd":
        return obj["none"]
    if obj.get("bad"):
        raise Refusal("it is bad")
    return f"{obj['metadata']['name']} as {scope.node_name} sees it"


@pytest.fixture(autouse=True)
def new_kind(monkeypatch):
    row = ApiKind(
        kind=NEW,
        api_version="example.com/v1",
        path=GADGETS,
        shape=Gadget,
        convert=gadget_of,
        unreadable=Unreadable.KEPT,
        label_selector=lambda scope: f"for={scope.proxy_name}",
    )
    monkeypatch.setitem(cast("dict[Kind, ApiKind[Any]]", kinds.KINDS), NEW, row)


EXPECTED = [
    Upserted(ObjectRef(NEW, "shop", "good"), "good as node1 sees it"),  # type: ignore[arg-type]
    Refused(ObjectRef(NEW, "shop", "bad"), "it is bad", Unreadable.KEPT),
    Synced(NEW),
]


async def told_by(source: Any, wanted: Callable[[list[Event]], bool]) -> list[Event]:
    """What the source tells of the new kind, until it has told what is wanted."""
    told: list[Event] = []

    def emit(events: Sequence[Event]) -> None:
        told.extend(event for event in events if NEW in (getattr(event, "kind", None), _kind_of(event)))

    task = asyncio.create_task(source.run(emit))
    deadline = time.monotonic() + 10
    while not wanted(told):
        assert not task.done(), task
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return told


def _kind_of(event: Event) -> Kind | None:
    return None if isinstance(event, Synced) else event.ref.kind


def test_every_kind_that_is_waited_for_is_in_the_table(monkeypatch):
    assert kinds.KINDS.keys() - {NEW} == WATCHED_KINDS


async def test_the_api_source_watches_a_kind_added_to_the_table(tmp_path):
    api = await FakeApi().start()
    api.objects[GADGETS] = {("shop", "good"): GOOD, ("shop", "bad"): BAD}
    client = await Client.from_kubeconfig(api.kubeconfig(tmp_path))
    try:
        told = await told_by(ApiSource(client, Scope("node1", "us")), lambda told: Synced(NEW) in told)
        assert told == EXPECTED
        assert api.queries(GADGETS)[0]["labelSelector"] == "for=us"
    finally:
        await client.aclose()
        await api.stop()


async def test_the_manifest_source_watches_a_kind_added_to_the_table(tmp_path):
    for obj in (GOOD, BAD):
        (tmp_path / f"{obj['metadata']['name']}.json").write_text(json.dumps(obj))
    told = await told_by(ManifestSource(tmp_path, Scope("node1", "us")), lambda told: Synced(NEW) in told)
    assert told[-1] == EXPECTED[-1]
    plain = [
        Upserted(ObjectRef(each.ref.kind, "shop", each.ref.name), each.object)
        if isinstance(each, Upserted)
        else Refused(ObjectRef(each.ref.kind, "shop", each.ref.name), each.reason, each.means)
        for each in told
        if isinstance(each, (Upserted, Refused))
    ]
    assert sorted(plain, key=str) == sorted(EXPECTED[:2], key=str)


def test_an_object_that_a_parser_stumbles_over_is_refused():
    row = kinds.KINDS[NEW]
    for form in (obj := {"metadata": {"name": "odd"}}), json.dumps(obj).encode():
        with pytest.raises(Refusal, match="it can't be read: KeyError: 'none'"):
            row.parse(form)
    with pytest.raises(Refusal, match="it can't be read: KeyError: 'none'"):
        row.resource(Scope()).convert(obj)
