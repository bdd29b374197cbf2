"""The shapes that the API's JSON has in common: metadata, lists, watch events; and what is wrong with JSON that does
not fit. The shape of each kind is in kube/kinds/.

Shapes are TypedDicts, since pydantic fills them straight from the bytes without an object per field; fields that no
shape names are never built. `null` means absent everywhere, as in Go. What the API server would not admit (a port of
70000, 1,001 endpoints) does not fit either, because a folder of manifests has no API server before it.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar

from pydantic import Field, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from kproxy_ebpf.errors import quoted

MAX_REASON_CHARS = 300

Object_ = TypeVar("Object_")

PortNumber = Annotated[int, Field(ge=1, le=65535)]
PortNumberOrZero = Annotated[int, Field(ge=0, le=65535)]
ProtocolName = Literal["TCP", "UDP", "SCTP"]


class Metadata(TypedDict):
    name: Annotated[str, Field(min_length=1)]
    namespace: NotRequired[str | None]
    uid: NotRequired[str | None]
    resourceVersion: NotRequired[str | None]
    creationTimestamp: NotRequired[str | None]
    deletionTimestamp: NotRequired[str | None]
    labels: NotRequired[dict[str, str] | None]
    annotations: NotRequired[dict[str, str] | None]


class WatchEvent(TypedDict, Generic[Object_]):
    """One line of a watch. Lines of type BOOKMARK and ERROR need not fit: kube/stream.py reads those apart."""

    type: str
    object: Object_


Page = TypedDict("Page", {"resourceVersion": NotRequired[str], "continue": NotRequired[str | None]})


class ObjectList(TypedDict, Generic[Object_]):
    metadata: Page
    items: NotRequired[list[Object_] | None]


_MESSAGES = {"dict_type": "should be an object", "list_type": "should be a list"}  # YAML and JSON in the same words


def reason_of(error: ValidationError) -> str:
    """The first thing wrong, in one line: field path, what it should be, and the value given."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = _MESSAGES.get(first["type"]) or first["msg"].removeprefix("Input ").replace("Field", "field")
    return one_line(f"{_path(first['loc'])}: {message}{_given(first['type'], first['input'])}")


def one_line(text: str) -> str:
    """`text` without control characters, of bounded length: it goes to logs, metrics and Events."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_REASON_CHARS])


def _path(location: tuple[int | str, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).lstrip(".") or "the object"


def _given(error_type: str, value: Any) -> str:
    if error_type in ("missing", "too_long", "json_invalid"):
        return ""
    return f", not {quoted(value)}"
