"""Reads files of YAML and JSON into documents that know their place. kube/manifests.py watches the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kproxy_ebpf.kube.wire import one_line

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE_BYTES = 64 << 20
MAX_DEPTH = 100
MIN_VALUES = 100_000  # a file has room for at least so many, aliases written out; else for one a byte
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BaseLoader):  # type: ignore[misc]  # the C parser where PyYAML has it
    """Times stay text, as they are in the API's JSON."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in _BaseLoader.yaml_implicit_resolvers.items()
    }


class UnreadableFileError(Exception):
    """The file holds no YAML or JSON. The message names the line where that is known."""


@dataclass(frozen=True, slots=True)
class Document:
    """One object as written. `place` tells people where: "web.yaml document 2, line 14"."""

    place: str
    content: Any


def read_documents(file: Path) -> list[Document]:
    """All documents of a file, Lists taken apart, empty ones left out.

    Raises UnreadableFileError, and OSError when the file can't be opened.
    """
    with file.open("rb") as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise UnreadableFileError(f"larger than {MAX_FILE_BYTES} bytes")
    try:
        return list(_from_json(file.name, content) if file.suffix == ".json" else _from_yaml(file.name, content))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UnreadableFileError(one_line(f"{line}{error.problem or error.context}")) from None
    except json.JSONDecodeError as error:
        raise UnreadableFileError(f"line {error.lineno}: {error.msg}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UnreadableFileError(one_line(str(error))) from None
    except RecursionError:
        raise UnreadableFileError(f"nested more than {MAX_DEPTH} deep") from None
    except UnreadableFileError:
        raise
    except Exception as error:  # PyYAML trusts explicit tags: `!!bool maybe` is a KeyError
        raise UnreadableFileError(one_line(f"not YAML: {type(error).__name__}: {error}")) from error


def _from_json(name: str, content: bytes) -> Iterator[Document]:
    document = json.loads(content)
    for index, item in _items(document):
        yield Document(f"{name} item {index}" if index else name, item)


def _from_yaml(name: str, content: bytes) -> Iterator[Document]:
    has_aliases = _check_depth(content)
    room = max(MIN_VALUES, len(content))
    loader = _Loader(content)
    try:
        index = 0
        while loader.check_node():
            index += 1
            node = loader.get_node()
            if has_aliases:
                room -= _values(node, room)
            lines = _item_lines(node)
            for item_index, item in _items(loader.construct_document(node)):
                what = f"{name} document {index}" + (f" item {item_index}" if item_index else "")
                line = lines[item_index - 1] if item_index and item_index <= len(lines) else node.start_mark.line + 1
                yield Document(f"{what}, line {line}", item)
    finally:
        loader.dispose()


def _check_depth(content: bytes) -> bool:
    """Walk the flat events: the C parser composes by recursion, and crashes where Python would raise. True if there are
    aliases.
    """
    depth, has_aliases = 0, False
    for event in yaml.parse(content, Loader=_Loader):
        has_aliases = has_aliases or isinstance(event, yaml.AliasEvent)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise UnreadableFileError(f"nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return has_aliases


def _values(root: yaml.Node, limit: int) -> int:
    """How many values a document has once its aliases are written out. Raises UnreadableFileError beyond `limit`: nine
    lines of nine aliases each make 400 million.
    """
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        known = counts.get(id(node))
        if known is not None:
            return known
        counts[id(node)] = 1  # one that contains itself is one more reference, no endless tree
        number = 1 + sum(map(count, _children(node)))
        if number > limit:
            raise UnreadableFileError(f"its aliases stand for more than {limit} values")
        counts[id(node)] = number
        return number

    return count(root)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _items(document: Any) -> Iterator[tuple[int, Any]]:
    """The items of a List numbered from 1, or the one object as number 0. A ServiceList's items need no kind."""
    if document is None:
        return
    items = document.get("items") if isinstance(document, dict) else None
    kind = str(document.get("kind")) if isinstance(items, list) else ""
    if not isinstance(items, list) or not kind.endswith("List"):
        yield 0, document
        return
    implied = {} if kind == "List" else {"apiVersion": document.get("apiVersion"), "kind": kind.removesuffix("List")}
    for index, item in enumerate(items, 1):
        yield index, {**implied, **item} if isinstance(item, dict) else item


def _item_lines(node: yaml.Node) -> list[int]:
    """On which lines the items of a List begin; empty for anything else."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "items" and isinstance(value, yaml.SequenceNode):
                return [item.start_mark.line + 1 for item in value.value]
    return []
