from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kproxy_ebpf.datapath.generations.object_file import (
    Code,
    Compiled,
    MapDefinition,
    ObjectFile,
    UnfitError,
    read,
    write,
)

DIGEST = "d" * 64
LOADS_MAP = bytes((0x18, 0x11, 0, 0, 0, 0, 0, 0, *bytes(8)))
RETURNS = bytes((0x95, *bytes(7)))
OBJECTS = ObjectFile(
    DIGEST,
    {"/lib/libbcc.so.0": "abc"},
    {
        family: Compiled(
            "GPL",
            bytes(range(256)),
            {"flows": MapDefinition(9, 8, 16, 1, 0, 4, 5)},
            {"from_pod": Code(RETURNS + LOADS_MAP + RETURNS, {1: "flows"})},
        )
        for family in (4, 6)
    },
)


def test_what_is_written_is_read() -> None:
    assert read(write(OBJECTS), DIGEST) == OBJECTS


@pytest.mark.parametrize("place", range(200))
def test_one_bit_flipped_is_noticed(place: int) -> None:
    data = bytearray(write(OBJECTS))
    at = random.Random(place).randrange(len(data) * 8) if place else 3  # the checksum itself, first
    data[at // 8] ^= 1 << at % 8
    with pytest.raises(UnfitError, match="is damaged"):
        read(bytes(data), DIGEST)


@pytest.mark.parametrize("kept", [1, 64, 65, -1])
def test_a_truncated_file_is_noticed(kept: int) -> None:
    with pytest.raises(UnfitError, match="is damaged"):
        read(write(OBJECTS)[:kept], DIGEST)


def test_a_file_of_zero_bytes() -> None:
    with pytest.raises(UnfitError, match="is empty"):
        read(b"", DIGEST)


def test_a_whole_file_of_another_digest() -> None:
    with pytest.raises(UnfitError, match="other programs"):
        read(write(replace(OBJECTS, digest="e" * 64)), DIGEST)


def test_descriptors_are_put_in_where_maps_are_named() -> None:
    code = OBJECTS.families[4].programs["from_pod"]
    relocated = code.relocated({"flows": 0x01020304, "other": 9})
    assert relocated[12:16] == bytes((4, 3, 2, 1))
    assert relocated[:12] + bytes(4) + relocated[16:] == code.instructions
    with pytest.raises(KeyError):
        code.relocated({})
