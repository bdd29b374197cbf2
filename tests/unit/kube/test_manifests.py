"""The folder of manifests, with real files and the real inotify."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import yaml
from fake_api import service, slice_

from kproxy_ebpf.errors import ClusterError
from kproxy_ebpf.kube import manifests
from kproxy_ebpf.kube.documents import Document
from kproxy_ebpf.kube.kinds.common import Scope
from kproxy_ebpf.kube.manifests import ManifestSource
from kproxy_ebpf.model.services import Node, ServiceName
from kproxy_ebpf.model.snapshot import WATCHED_KINDS, Event, Kind, Removed, Snapshot, Upserted


def text(*objects: dict) -> str:
    kinds = {"spec": ("v1", "Service"), "addressType": ("discovery.k8s.io/v1", "EndpointSlice")}
    documents = []
    for obj in objects:
        version, kind = next((kinds[field] for field in kinds if field in obj), (None, None))
        documents.append({"apiVersion": version, "kind": kind, **obj})
    return yaml.safe_dump_all(documents)


class Watched:
    """A source at work, and the snapshot made of what it told."""

    def __init__(self, folder: Path) -> None:
        self.snapshot = Snapshot()
        self.events: list[Event] = []
        self.source = ManifestSource(folder, Scope("node1"))
        self.task = asyncio.create_task(self.source.run(self._emit))

    def _emit(self, events: Sequence[Event]) -> None:
        self.events += events
        for event in events:
            self.snapshot.apply(event)

    @property
    def services(self) -> set[str]:
        return {key.name for key in self.snapshot.services}

    @property
    def refused(self) -> dict[str, str]:
        return {name: refused.reason for (_, _, name), refused in self.snapshot.refused.items()}

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 15
        while not condition():
            assert not self.task.done(), self.task
            assert time.monotonic() < deadline, (self.snapshot, self.source.last_error)
            await asyncio.sleep(0.005)


@pytest.fixture
async def watch(tmp_path) -> AsyncIterator[Callable[[], Watched]]:
    started: list[Watched] = []

    async def start(folder: Path = tmp_path) -> Watched:
        started.append(Watched(folder))
        await started[-1].until(lambda: started[-1].snapshot.synced == WATCHED_KINDS)
        return started[-1]

    yield start
    for each in started:
        each.task.cancel()
    await asyncio.gather(*(each.task for each in started), return_exceptions=True)


async def test_files_of_every_form_are_read_at_the_start(tmp_path, watch):
    (tmp_path / "a.yaml").write_text(text(service("a"), slice_("a-1", "a")) + "---\n# nothing here\n---\n")
    (tmp_path / "b.json").write_text(json.dumps({"apiVersion": "v1", "kind": "Service", **service("b")}))
    listed = {"apiVersion": "v1", "kind": "List", "items": list(yaml.safe_load_all(text(service("c"), service("d"))))}
    (tmp_path / "c.yml").write_text(yaml.safe_dump(listed))
    (tmp_path / "d.yaml").write_text(
        yaml.safe_dump({"kind": "ServiceList", "apiVersion": "v1", "items": [service("e")]})
    )
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"apiVersion": "apps/v1", "kind": "Deployment"}))
    (tmp_path / "knative.yaml").write_text(text({**service("k"), "apiVersion": "serving.knative.dev/v1"}))
    (tmp_path / "README.md").write_text("not: [yaml")
    (tmp_path / ".hidden.yaml").write_text(text(service("hidden")))
    watched = await watch()
    assert watched.services == {"a", "b", "c", "d", "e"}
    assert set(watched.snapshot.slices) == {ServiceName("default", "a")}
    assert watched.snapshot.node == Node("node1")
    assert watched.refused == {}


async def test_objects_follow_the_files(tmp_path, watch):
    file = tmp_path / "a.yaml"
    file.write_text(text(service("a"), service("b")))
    watched = await watch()
    (tmp_path / "new").write_text(text(service("a", clusterIP="10.96.0.99"), service("c")))
    (tmp_path / "new").rename(file)  # as an editor does
    await watched.until(lambda: watched.services == {"a", "c"})
    assert watched.snapshot.services[ServiceName("default", "a")].cluster_ips == (bytes([10, 96, 0, 99]),)
    file.unlink()
    await watched.until(lambda: watched.services == set())
    file.write_text(text(service("d")))
    await watched.until(lambda: watched.services == {"d"})


async def test_an_unchanged_object_is_told_once(tmp_path, watch):
    (tmp_path / "a.yaml").write_text(text(service("a")))
    watched = await watch()
    (tmp_path / "b.yaml").write_text(text(service("b")))
    await watched.until(lambda: watched.services == {"a", "b"})
    assert sum(isinstance(event, Upserted) and event.ref.name == "a" for event in watched.events) == 1


async def test_the_symlink_swap_of_a_mounted_config_map(tmp_path, watch, monkeypatch):
    monkeypatch.setattr(manifests, "RESCAN_SECONDS", 3600.0)  # inotify must tell
    for version, name in (("..v1", "old"), ("..v2", "new")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "a.yaml").write_text(text(service(name)))
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    watched = await watch()
    assert watched.services == {"old"}

    def swapped() -> bool:  # again and again, for the watch begins a little after the first reading
        (tmp_path / "..data_tmp").symlink_to("..v2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        return watched.services == {"new"}

    await watched.until(swapped)


async def test_a_file_that_is_no_yaml_keeps_its_objects_and_is_refused_by_line(tmp_path, watch):
    file = tmp_path / "a.yaml"
    file.write_text(text(service("a")))
    watched = await watch()
    file.write_text("kind: Service\nmetadata: [\n")
    await watched.until(lambda: watched.refused)
    assert "line 3" in watched.refused["a.yaml"]
    assert watched.services == {"a"}
    file.write_text(text(service("b")))
    await watched.until(lambda: watched.services == {"b"})
    assert watched.refused == {}


async def test_a_bad_object_is_absent_and_named_with_file_document_and_line(tmp_path, watch):
    file = tmp_path / "a.yaml"
    file.write_text(text(service("a"), service("b")))
    watched = await watch()
    file.write_text(text(service("a", ports=[{"port": "80"}]), service("b"), service("c")))
    await watched.until(lambda: watched.services == {"b", "c"})
    ((key, refused),) = watched.snapshot.refused.items()
    assert key == (Kind.SERVICE, "default", "a")
    assert str(refused.ref) == "Service default/a (a.yaml document 1, line 1)"
    assert refused.reason == "spec.ports[0].port: should be a valid integer, not '80'"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("[1, 2]", "not an object"),
        ("apiVersion: v1\nmetadata: {name: x}", "kind: field required"),
        ("apiVersion: v1\nkind: Service\nmetadata: {}", "metadata.name: field required"),
        ("&a {apiVersion: v1, kind: Service, metadata: *a, spec: *a}", "metadata.name: field required"),
        ("apiVersion: v2\nkind: Service\nmetadata: {name: x}", "apiVersion: only v1 can be read, not 'v2'"),
        ("kind: Service\nmetadata: {name: x}", "apiVersion: only v1"),
        ("kind: Service\napiVersion: v1\nmetadata: {name: x}", "spec: field required"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("[" * 100_000 + "]" * 100_000, "nested more than 100 deep"),
    ],
)
async def test_what_is_no_object_is_refused_and_the_others_work(tmp_path, watch, document, reason):
    (tmp_path / "bad.yaml").write_text(document)
    (tmp_path / "good.yaml").write_text(text(service("good")))
    watched = await watch()
    assert watched.services == {"good"}
    (given,) = watched.refused.values()
    assert reason in given


async def test_of_two_definitions_the_first_file_by_name_wins(tmp_path, watch):
    (tmp_path / "b.yaml").write_text(text(service("a", clusterIP="10.96.0.2")))
    (tmp_path / "a.yaml").write_text(text(service("a", clusterIP="10.96.0.1")))
    watched = await watch()
    assert watched.snapshot.services[ServiceName("default", "a")].cluster_ips == (bytes([10, 96, 0, 1]),)
    assert watched.refused == {
        "b.yaml document 1, line 1": "Service default/a is defined in a.yaml document 1, line 1 already"
    }
    (tmp_path / "a.yaml").unlink()
    await watched.until(lambda: watched.snapshot.services[ServiceName("default", "a")].cluster_ips[0][-1] == 2)
    assert watched.refused == {}


async def test_the_own_node_object_counts_and_others_do_not(tmp_path, watch):
    def node(name: str, zone: str) -> str:
        labels = {"topology.kubernetes.io/zone": zone}
        return yaml.safe_dump({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})

    (tmp_path / "n.yaml").write_text(node("node2", "b") + "---\n" + node("node1", "a"))
    watched = await watch()
    assert watched.snapshot.node == Node("node1", zone="a")
    (tmp_path / "n.yaml").unlink()
    await watched.until(lambda: watched.snapshot.node == Node("node1"))


async def test_times_are_text_as_at_the_api(tmp_path, watch):
    manifest = text(service("a")).replace("  name: a\n", "  name: a\n  creationTimestamp: 2024-01-01T00:00:00Z\n")
    (tmp_path / "a.yaml").write_text(manifest)
    watched = await watch()
    assert watched.snapshot.services[ServiceName("default", "a")].created == "2024-01-01T00:00:00Z"


async def test_a_file_is_not_read_while_it_is_being_written(tmp_path, watch):
    file = tmp_path / "a.yaml"
    file.write_text(text(service("a"), service("b")))
    watched = await watch()
    with file.open("w") as stream:  # truncated: valid YAML without objects
        for part in (text(service("a")), "---\n", text(service("b")), "---\n", text(service("c"))):
            stream.write(part)
            stream.flush()
            await asyncio.sleep(0.02)
    await watched.until(lambda: watched.services == {"a", "b", "c"})
    assert not any(isinstance(event, Removed) for event in watched.events)


async def test_a_folder_that_vanishes_keeps_its_objects_until_it_is_back(tmp_path, watch):
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_text(text(service("a")))
    watched = await watch(folder)
    folder.rename(tmp_path / "away")
    await watched.until(lambda: not watched.source.connected)
    assert watched.services == {"a"}
    assert "No such file" in watched.source.last_error
    folder.mkdir()
    (folder / "b.yaml").write_text(text(service("b")))
    await watched.until(lambda: watched.services == {"b"})
    assert watched.source.connected


async def test_no_folder_at_the_start_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(ClusterError, match="--manifests"):
        await ManifestSource(tmp_path / "none", Scope("node1")).run(lambda _: None)


async def test_a_dangling_link_and_a_fifo_are_left_alone(tmp_path, watch):
    (tmp_path / "link.yaml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "a.yaml").write_text(text(service("a")))
    watched = await watch()
    assert watched.services == {"a"}
    assert watched.refused == {}


async def test_a_tag_that_lies_costs_its_file_alone(tmp_path, watch):
    (tmp_path / "a.yaml").write_text(text(service("a")))
    watched = await watch()
    (tmp_path / "b.yaml").write_text("kind: !!bool maybe\n")
    await watched.until(lambda: watched.refused)
    assert "KeyError" in watched.refused["b.yaml"]
    (tmp_path / "b.yaml").write_text(text(service("b")))
    await watched.until(lambda: watched.services == {"a", "b"})
    assert watched.refused == {}


async def test_a_slice_with_a_bad_endpoint_is_in_force_without_it(tmp_path, watch):
    bad = slice_("a-1", "a", endpoints=[{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0"]}])
    (tmp_path / "a.yaml").write_text(text(service("a"), bad))
    watched = await watch()
    assert len(watched.snapshot.slices[ServiceName("default", "a")]["a-1"].endpoints) == 1
    assert watched.refused == {"a-1": "endpoints[1].addresses[0]: '10.0.0' is not an IPv4 address"}
    (tmp_path / "a.yaml").write_text(text(service("a")))
    await watched.until(lambda: not watched.snapshot.slices)
    assert watched.refused == {}


async def test_only_the_file_that_changed_is_parsed_and_not_on_the_loop(tmp_path, watch, monkeypatch):
    for number in range(50):
        (tmp_path / f"{number}.yaml").write_text(text(service(f"s{number}")))
    parsed, parse = [], ManifestSource._parsed

    def counted(source: ManifestSource, document: Document) -> object:
        parsed.append((document.place, threading.current_thread() is threading.main_thread()))
        return parse(source, document)

    monkeypatch.setattr(ManifestSource, "_parsed", counted)
    watched = await watch()
    assert len(parsed) == 50
    parsed.clear()
    (tmp_path / "7.yaml").write_text(text(service("new")))
    await watched.until(lambda: "new" in watched.services)
    assert parsed == [("7.yaml document 1, line 1", False)]
    assert len(watched.services) == 50


async def test_the_longer_a_rescan_takes_the_rarer_it_is(tmp_path, watch, monkeypatch):
    monkeypatch.setattr(manifests, "RESCAN_SECONDS", 0.02)
    scans, scan = [], manifests.scan

    def slow(*arguments: object) -> object:
        scans.append(time.monotonic())
        time.sleep(0.05)
        return scan(*arguments)

    monkeypatch.setattr(manifests, "scan", slow)
    watched = await watch()
    await asyncio.sleep(1)
    assert len(scans) <= 2  # at the start, and when the watch has begun
    (tmp_path / "a.yaml").write_text(text(service("a")))
    await watched.until(lambda: watched.services == {"a"})
