"""A folder of manifests as the source: objects of the kinds that are asked for in YAML or JSON files, watched.

Objects follow the same rules as those of the API, and give the same events. A file that can't be read as YAML keeps
the objects that it had, and is refused; a single bad object counts as its kind says. When two files define one object,
the first by name wins. inotify only says when to rescan: the changes come from comparing with what was read before, so
a lost notification does no lasting harm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import structlog
from watchfiles import awatch

from kproxy_ebpf.errors import ClusterError, quoted
from kproxy_ebpf.kube.addresses import Refusal
from kproxy_ebpf.kube.documents import SUFFIXES, Document, UnreadableFileError, read_documents
from kproxy_ebpf.kube.kinds import KINDS, Kinds
from kproxy_ebpf.kube.kinds.common import DEFAULT_NAMESPACE, ApiKind, Scope
from kproxy_ebpf.model.services import Node
from kproxy_ebpf.model.snapshot import Event, Kind, ObjectRef, Refused, Removed, Synced, Unreadable, Upserted

QUIET_SECONDS = 0.05  # a file written less than this ago may be half written: look again
RESCAN_SECONDS = 1.0
RESCAN_FACTOR = 50  # so many times as long as a rescan took: 2 % of a CPU

log = structlog.get_logger(__name__)

Key = tuple[Kind, str, str]
Told = tuple[Upserted | Refused, ...]
"""What is told of one object: the object, or why it is refused, or both where only some of it is."""


class Parsed(NamedTuple):
    """What one document says. `ref` is the object that it defines, None where nobody can tell."""

    place: str
    ref: ObjectRef | None
    told: Told


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file as last seen. `signature` changes with its content; `error` is why the documents may be older ones."""

    signature: tuple[int, ...]
    documents: tuple[Parsed, ...]
    error: str = ""


class ManifestSource:
    """A folder as a ClusterSource (kube/source.py): every kind of `kinds`, as `scope` sees it."""

    def __init__(self, folder: Path, scope: Scope, kinds: Kinds = KINDS) -> None:
        self.connected = False
        self.last_error = ""
        self._folder, self._scope, self._kinds = folder, scope, kinds
        self._files: dict[str, ReadFile] = {}
        self._told: dict[Key, Told] = {}
        self._rescan_at = 0.0

    async def run(self, emit: Callable[[Sequence[Event]], None]) -> NoReturn:
        """Emit until cancelled; see ClusterSource. Raises ClusterError when there is no such folder at the start."""
        await self.read(emit)
        while True:
            try:
                await self._follow(emit)
            except OSError as error:  # the folder is gone for now, or inotify has no watch left
                self._trouble(str(error))
                await asyncio.sleep(RESCAN_SECONDS)

    async def read(self, emit: Callable[[Sequence[Event]], None]) -> None:
        """Emit what is there now, and each Kind's Synced. Raises ClusterError."""
        if not await asyncio.to_thread(self._folder.is_dir):
            raise ClusterError(f"{self._folder} is not a folder: give --manifests the folder that holds the manifests")
        try:
            await self._rescan(emit, quiet_seconds=0)
        except OSError as error:
            raise ClusterError(f"{self._folder} can't be read ({error.strerror}): check the folder's rights") from error
        emit([Synced(kind) for kind in self._kinds])

    async def _follow(self, emit: Callable[[Sequence[Event]], None]) -> None:
        """Rescan whenever something happens, and now and then: a folder put in this one's place is not watched."""
        await self._rescan(emit)
        async for changes in awatch(
            self._folder,
            watch_filter=None,  # a ConfigMap's files change by a renamed symlink called ..data
            recursive=False,
            debounce=50,
            step=10,
            rust_timeout=int(RESCAN_SECONDS * 1000),
            yield_on_timeout=True,
        ):
            if changes or time.monotonic() >= self._rescan_at:
                await self._rescan(emit)

    async def _rescan(self, emit: Callable[[Sequence[Event]], None], quiet_seconds: float = QUIET_SECONDS) -> None:
        """Read the files that have changed, and emit the difference. The longer it takes, the later comes the next one
        that nobody asks for: ten thousand files are not stat'ed each second.
        """
        began = time.monotonic()
        quiet = False
        while not quiet:
            files, quiet = await asyncio.to_thread(scan, self._folder, self._files, quiet_seconds, self._parsed)
            if files != self._files or not self._told:
                self._files = files
                self._emit_changes(emit)
            if not quiet:
                await asyncio.sleep(quiet_seconds)
        self.connected, self.last_error = True, ""
        self._rescan_at = time.monotonic() + RESCAN_FACTOR * (time.monotonic() - began)

    def _emit_changes(self, emit: Callable[[Sequence[Event]], None]) -> None:
        wanted = self._events()
        removed = [Removed(events[0].ref) for key, events in self._told.items() if key not in wanted]
        changed = [event for key, events in wanted.items() if self._told.get(key) != events for event in events]
        self._told = wanted
        if removed or changed:
            emit([*removed, *changed])

    def _trouble(self, text: str) -> None:
        if text != self.last_error:
            log.warning("the manifests can't be watched: what was read stays in force", error=text)
        self.connected, self.last_error = False, text

    def _events(self) -> dict[Key, Told]:
        """What the files say, by object. The first document by file name that defines an object has it."""
        events: dict[Key, Told] = {}
        owners: dict[Key, str] = {}
        for name, file in sorted(self._files.items()):
            if file.error:
                events[Kind.FILE, "", name] = (Refused(ObjectRef(Kind.FILE, "", name), file.error, Unreadable.KEPT),)
            for place, ref, told in file.documents:
                key = (ref.kind, ref.namespace, ref.name) if ref is not None else (Kind.FILE, "", place)
                owner = owners.setdefault(key, place)
                if owner != place:
                    reason = f"{key[0]} {key[1]}/{key[2]} is defined in {owner} already"
                    refused = Refused(ObjectRef(Kind.FILE, "", place), reason, Unreadable.ABSENT)
                    events[Kind.FILE, "", place] = (refused,)
                elif told:
                    events[key] = told
        if Kind.NODE in self._kinds:
            node = ObjectRef(Kind.NODE, "", self._scope.node_name)
            events.setdefault((node.kind, node.namespace, node.name), (Upserted(node, Node(node.name)),))
        return events

    def _parsed(self, document: Document) -> Parsed | None:
        """What one document says; None for kinds and objects that don't count."""
        try:
            ref = _ref(document, self._kinds)
        except Refusal as refusal:
            place = ObjectRef(Kind.FILE, "", document.place)
            return Parsed(document.place, None, (Refused(place, str(refusal), Unreadable.ABSENT),))
        if ref is None:
            return None
        kind = self._kinds[ref.kind]
        if kind.only(self._scope) not in (None, ref.name):
            return None
        try:
            _require_version(kind, document.content)
            found = kind.parse(document.content, self._scope)
        except Refusal as refusal:
            return Parsed(document.place, ref, kind.refusal(ref, refusal))
        return Parsed(document.place, ref, () if found is None else (Upserted(ref, found),))


def scan(
    folder: Path, known: Mapping[str, ReadFile], quiet_seconds: float, parse: Callable[[Document], Parsed | None]
) -> tuple[dict[str, ReadFile], bool]:
    """The files of `folder` by name, those unchanged since `known` taken from it, and whether all are quiet: one
    written less than `quiet_seconds` ago is left as it was. Raises OSError when the folder can't be listed.
    """
    files: dict[str, ReadFile] = {}
    quiet = True
    for path in folder.iterdir():
        if path.suffix not in SUFFIXES or path.name.startswith("."):
            continue
        previous = known.get(path.name, ReadFile((), ()))
        signature: tuple[int, ...] = ()
        try:
            status = path.stat()
            signature = (status.st_mtime_ns, status.st_ino, status.st_size)
            if not path.is_file():
                continue
            if signature == previous.signature:
                files[path.name] = previous
            elif 0 <= time.time() - status.st_mtime < quiet_seconds:
                quiet = False
                if previous.signature:
                    files[path.name] = previous
            else:
                files[path.name] = ReadFile(signature, tuple(filter(None, map(parse, read_documents(path)))))
        except FileNotFoundError:  # removed under us, or a link to nothing
            continue
        except (UnreadableFileError, OSError) as error:
            files[path.name] = ReadFile(signature, previous.documents, f"{error} (what it held before stays in force)")
    return files, quiet


def _ref(document: Document, kinds: Kinds) -> ObjectRef | None:
    """The object that the document describes, None if its kind does not count. Raises Refusal if it has no name."""
    content = document.content
    if not isinstance(content, dict):
        raise Refusal("not an object: a manifest has apiVersion, kind and metadata")
    name_of_kind, version = content.get("kind"), content.get("apiVersion")
    if not isinstance(name_of_kind, str):
        raise Refusal("kind: field required")
    kind = next((each for each in kinds.values() if each.kind == name_of_kind), None)
    if kind is None or not _same_group(version, kind.api_version):
        return None
    metadata = content.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name, str) or not name:
        raise Refusal("metadata.name: field required")
    namespace = metadata.get("namespace")
    if not kind.is_namespaced:
        namespace = ""
    elif not isinstance(namespace, str) or not namespace:
        namespace = DEFAULT_NAMESPACE
    return ObjectRef(kind.kind, namespace, name, origin=document.place)


def _require_version(kind: ApiKind[Any], content: Mapping[str, Any]) -> None:
    if content.get("apiVersion") != kind.api_version:
        raise Refusal(f"apiVersion: only {kind.api_version} can be read, not {quoted(content.get('apiVersion'))}")


def _same_group(version: object, ours: str) -> bool:
    """A Service of another API group (Knative has one) is none of ours; one without an apiVersion is a mistake."""
    return not isinstance(version, str) or version.rpartition("/")[0] == ours.rpartition("/")[0]
