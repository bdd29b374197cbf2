"""What compiling leaves: everything that the kernel is told of the programs, in one file that needs no compiler.

The first line is the SHA-256 of the rest, in hexadecimal; the rest is JSON, bytes in it are base64. Nothing in it
depends on a node: instructions name their maps, sizes that a node chooses are put in when maps are made, and the
numbers that the running kernel gives (descriptors, BTF ids) are found when programs are loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kproxy_ebpf.errors import KproxyError

FORMAT = 1
"""Part of the digest: a version that writes something else finds no file of an earlier one."""

_INSTRUCTION_BYTES = 8


class UnfitError(KproxyError):
    """A file is not what was written, or not what is wanted. The message goes on after the file's name."""


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """What BPF_MAP_CREATE is told; `key_type` and `value_type` are ids in the family's BTF, 0 for none."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key_type: int = 0
    value_type: int = 0

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """See linux.bpf.MapInfo."""
        return self.type, self.key_size, self.value_size, self.max_entries, self.flags


@dataclass(frozen=True, slots=True)
class Code:
    """A program's instructions, 8 bytes each, with 0 where a map's descriptor belongs.

    `maps` gives the map's name by the index of each instruction that takes one.
    """

    instructions: bytes
    maps: Mapping[int, str]

    def relocated(self, descriptors: Mapping[str, int]) -> bytes:
        """The instructions with descriptors put in. Raises KeyError for a map that is not there."""
        code = bytearray(self.instructions)
        for index, name in self.maps.items():
            immediate = index * _INSTRUCTION_BYTES + 4
            code[immediate : immediate + 4] = descriptors[name].to_bytes(4, "little")
        return bytes(code)


@dataclass(frozen=True, slots=True)
class Compiled:
    """One address family: maps by their C name, programs by their C function's. `btf` describes the maps' entries."""

    license: str
    btf: bytes
    maps: Mapping[str, MapDefinition]
    programs: Mapping[str, Code]


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """All families, the digest of all that was compiled, and the `tools` that did it (toolchain.Tools)."""

    digest: str
    tools: Mapping[str, str]
    families: Mapping[int, Compiled]


def write(content: ObjectFile) -> bytes:
    """The bytes of the file."""
    families = {family: compiled_to_json(compiled) for family, compiled in content.families.items()}
    text = json.dumps({"digest": content.digest, "tools": dict(content.tools), "families": families}, indent=1).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def read(data: bytes, digest: str) -> ObjectFile:
    """The content of a file that was written for `digest`. Raises UnfitError."""
    checksum, _, text = data.partition(b"\n")
    if not data:
        raise UnfitError("is empty")
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        raise UnfitError("is damaged: its checksum is another")
    content = json.loads(text)
    if content["digest"] != digest:
        raise UnfitError("holds other programs than those of this version for this kernel and processor")
    families = {int(family): compiled_from_json(compiled) for family, compiled in content["families"].items()}
    return ObjectFile(digest, content["tools"], families)


def compiled_to_json(compiled: Compiled) -> dict[str, Any]:
    """What json.dumps takes."""
    return {
        "license": compiled.license,
        "btf": _text(compiled.btf),
        "maps": {name: asdict(definition) for name, definition in compiled.maps.items()},
        "programs": {
            name: {"instructions": _text(code.instructions), "maps": dict(code.maps)}
            for name, code in compiled.programs.items()
        },
    }


def compiled_from_json(content: Mapping[str, Any]) -> Compiled:
    """The opposite; what it is given was written by `compiled_to_json`."""
    return Compiled(
        content["license"],
        base64.b64decode(content["btf"]),
        {name: MapDefinition(**definition) for name, definition in content["maps"].items()},
        {
            name: Code(
                base64.b64decode(code["instructions"]), {int(index): name for index, name in code["maps"].items()}
            )
            for name, code in content["programs"].items()
        },
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
