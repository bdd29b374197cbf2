"""What the API server sends, decoded: watch lines and list pages to changes of objects. No I/O.

The fast path validates the bytes straight into the shape of the resource. Lines that do not fit take the slow path. It
reads the JSON loosely, to recognise bookmarks and errors, and to name the one object that must be refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from kproxy_ebpf.errors import quoted
from kproxy_ebpf.kube import wire
from kproxy_ebpf.kube.addresses import Refusal
from kproxy_ebpf.kube.response import AnswerError

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
MAX_LINE_BYTES = 64 << 20

Wired = TypeVar("Wired")
T = TypeVar("T")


class BrokenStreamError(AnswerError):
    """The answer is not what an API server sends: cut short, not JSON, or beyond the bound of a line."""


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """What to watch. `convert` gets an object of `shape`; it returns None for one to be skipped and raises Refusal.

    `query` holds selectors. `optional`: synced, with no object, when the server won't let us read it.
    """

    path: str
    shape: type
    convert: Callable[[Any], T | None]
    query: tuple[tuple[str, str], ...] = ()
    optional: bool = False
    event_adapter: TypeAdapter[Any] = field(init=False, repr=False, compare=False)
    list_adapter: TypeAdapter[Any] = field(init=False, repr=False, compare=False)
    object_adapter: TypeAdapter[Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shape: Any = self.shape
        object.__setattr__(self, "event_adapter", TypeAdapter(wire.WatchEvent[shape]))
        object.__setattr__(self, "list_adapter", TypeAdapter(wire.ObjectList[shape]))
        object.__setattr__(self, "object_adapter", TypeAdapter(shape))


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """The newest state of one object. `object` is the object itself, or the Refusal that says why it can't be read, or
    None when it is gone or does not count.
    """

    namespace: str
    name: str
    uid: str
    version: str
    object: T | Refusal | None


@dataclass(frozen=True, slots=True)
class Bookmark:
    """All changes up to `version` have been sent. `initial_end`: the initial state is complete, too."""

    version: str
    initial_end: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """An ERROR event; `code` is an HTTP status."""

    code: int
    message: str


@dataclass(frozen=True, slots=True)
class DecodedPage(Generic[T]):
    changes: list[Change[T]]
    version: str
    more: str


class LineSplitter:
    """Cuts chunks into lines of up to MAX_LINE_BYTES, copying each byte once however long the line is."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._pending = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes. Raises BrokenStreamError for a line beyond the bound."""
        *ended, rest = chunk.split(b"\n")
        if ended and self._pieces:
            ended[0] = b"".join((*self._pieces, ended[0]))
            self._pieces, self._pending = [], 0
        if rest:
            self._pieces.append(rest)
            self._pending += len(rest)
        if self._pending > self._max_bytes:
            raise BrokenStreamError(f"a watch line is longer than {self._max_bytes} bytes")
        return [line for line in ended if line.strip()]


def batches(
    resource: Resource[T], lines: Iterable[bytes]
) -> Iterator[tuple[list[Change[T]], Bookmark | Failure | None]]:
    """The changes among `lines`, cut after each bookmark or failure. Raises BrokenStreamError."""
    changes: list[Change[T]] = []
    for line in lines:
        item = decode_line(resource, line)
        if isinstance(item, Change):
            changes.append(item)
        else:
            yield changes, item
            changes = []
    if changes:
        yield changes, None


def decode_line(resource: Resource[T], line: bytes) -> Change[T] | Bookmark | Failure:
    """One line of a watch. Raises BrokenStreamError when it is no event at all."""
    try:
        event = resource.event_adapter.validate_json(line, strict=True)
    except ValidationError:
        return _decode_loosely(resource, line)
    if event["type"] in ("ADDED", "MODIFIED"):
        return _converted(resource, event["object"])
    return _decode_loosely(resource, line)


def page_query(limit: int, more: str) -> list[tuple[str, str]]:
    """What asks for a page of a list: `limit` objects (0: all), from the continue token `more` on."""
    return [*([("limit", str(limit))] if limit else []), *([("continue", more)] if more else [])]


def decode_page(resource: Resource[T], body: bytes) -> DecodedPage[T]:
    """One page of a list. Raises BrokenStreamError when it is none."""
    try:
        page = resource.list_adapter.validate_json(body, strict=True)
        changes = [_converted(resource, obj) for obj in page.get("items") or ()]
    except ValidationError:
        page = _loads(body)
        if not isinstance(page.get("metadata"), dict) or not isinstance(page.get("items") or [], list):
            raise BrokenStreamError("the answer to a list is not a list") from None
        changes = list(_converted_loosely(resource, page.get("items") or []))
    version, more = page["metadata"].get("resourceVersion"), page["metadata"].get("continue")
    if not version:
        raise BrokenStreamError("a list without a resourceVersion")
    return DecodedPage(changes, str(version), str(more or ""))


def _converted(resource: Resource[T], obj: Any) -> Change[T]:
    """The change for an object whose shape has been checked."""
    metadata = obj["metadata"]
    result: T | Refusal | None
    try:
        result = resource.convert(obj)
    except Refusal as refusal:
        result = refusal
    return Change(
        metadata.get("namespace") or "",
        metadata["name"],
        metadata.get("uid") or "",
        metadata.get("resourceVersion") or "",
        result,
    )


def _converted_loosely(resource: Resource[T], objects: list[Any]) -> Iterator[Change[T]]:
    for obj in objects:
        try:
            yield _converted(resource, resource.object_adapter.validate_python(obj, strict=True))
        except ValidationError as error:
            yield _named(obj, Refusal(wire.reason_of(error)))


def _decode_loosely(resource: Resource[T], line: bytes) -> Change[T] | Bookmark | Failure:
    event = _loads(line)
    obj = event.get("object")
    match event.get("type"), obj:
        case ("BOOKMARK", dict()):
            annotations = _dict(_dict(obj, "metadata"), "annotations")
            version = _dict(obj, "metadata").get("resourceVersion")
            return Bookmark(str(version or ""), annotations.get(INITIAL_EVENTS_END) == "true")
        case ("ERROR", dict()):
            code = obj.get("code")
            text = wire.one_line(str(obj.get("message") or obj.get("reason") or "no reason given"))
            return Failure(code if isinstance(code, int) else 500, text)
        case ("DELETED", dict()):
            return _named(obj, None)
        case ("ADDED" | "MODIFIED", _):
            return next(_converted_loosely(resource, [obj]))
    raise BrokenStreamError(f"a watch line of unknown type {quoted(event.get('type'))}")


def _named(obj: Any, result: Refusal | None) -> Change[Any]:
    """The change for an object whose shape does not fit. Raises BrokenStreamError when it has no name."""
    metadata = _dict(obj, "metadata")
    texts = [value if isinstance(value := metadata.get(key), str) else "" for key in _NAMING]
    namespace, name, uid, version = texts
    if not name:
        raise BrokenStreamError("an object without a name")
    return Change(namespace, name, uid, version, result)


_NAMING = ("namespace", "name", "uid", "resourceVersion")


def _dict(obj: Any, key: str) -> dict[str, Any]:
    value = obj.get(key) if isinstance(obj, dict) else None
    return value if isinstance(value, dict) else {}


def _loads(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenStreamError(f"the answer is not JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise BrokenStreamError("the answer is not a JSON object")
    return value
