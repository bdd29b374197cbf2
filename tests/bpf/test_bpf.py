"""Maps as the kernel has them, whatever is in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import u32

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.linux.bpf import LRU_HASH, NO_EXIST, PERCPU_ARRAY, Map
from kproxy_ebpf.linux.libbpf import call

HASH, ARRAY, LPM = 1, 2, 11


def test_map_operations() -> None:
    with Map.create("lab", HASH, 4, 8, 8) as map_:
        assert map_.lookup(u32(1)) is None
        map_.update(u32(1), bytes(8))
        with pytest.raises(FileExistsError):
            map_.update(u32(1), bytes(8), NO_EXIST)
        assert map_.delete(u32(1))
        assert not map_.delete(u32(1))
        map_.update_batch(b"".join(map(u32, range(8))), bytes(64))
        assert sorted(map_.keys()) == sorted(map(u32, range(8)))
        with pytest.raises(MapFullError, match="lab is full"):
            map_.update(u32(8), bytes(8))
        with pytest.raises(ValueError, match="4 bytes"):
            map_.lookup(b"x")
        with pytest.raises(ValueError, match="8 bytes"):
            map_.update(u32(1), b"x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        map_.lookup(u32(1))


@pytest.mark.parametrize("type_", [HASH, LRU_HASH])
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_batches_read_every_entry_once(type_: int, chunk: int) -> None:
    with Map.create("lab", type_, 4, 4, 20000) as map_:
        keys = b"".join(map(u32, range(500)))
        map_.update_batch(keys, keys)
        read = [entry for part in map_.chunks(chunk) for entry in zip(*(_split(data) for data in part), strict=True)]
        assert sorted(read) == sorted((u32(i), u32(i)) for i in range(500))


def test_every_kind_of_map_can_be_walked() -> None:
    with Map.create("lab", ARRAY, 4, 4, 10) as array:
        array.update(u32(3), u32(7))
        assert dict(array.items()) == {u32(i): u32(7 if i == 3 else 0) for i in range(10)}
    with Map.create("lab", LPM, 8, 4, 10, 1) as lpm:
        assert list(lpm.items()) == []
        lpm.update(u32(32) + b"abcd", u32(1))
        assert list(lpm.items()) == [(u32(32) + b"abcd", u32(1))]
    with Map.create("lab", PERCPU_ARRAY, 4, 4, 1) as percpu:
        value = percpu.lookup(u32(0))
        assert value is not None
        assert len(value) % 8 == 0, "each CPU's value is padded"


@pytest.fixture
def no_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *arguments: Any) -> int:
        if name.endswith("_batch"):
            raise OSError(524, "as LPM before Linux 5.17")
        return call(name, *arguments)

    monkeypatch.setattr("kproxy_ebpf.linux.bpf.call", refuse)


@pytest.mark.usefixtures("no_batches")
def test_maps_without_batches_are_written_one_by_one() -> None:
    with Map.create("lab", LPM, 8, 4, 2, 1) as lpm:
        keys = [u32(32) + b"abcd", u32(16) + b"ab\0\0", u32(8) + b"a\0\0\0"]
        lpm.update_batch(b"".join(keys[:2]), u32(1) + u32(2))
        assert [lpm.lookup(u32(32) + address) for address in (b"abcd", b"abxx")] == [u32(1), u32(2)]
        lpm.update_batch(b"".join(keys[:2]), u32(3) + u32(4))
        assert lpm.lookup(keys[0]) == u32(3)
        with pytest.raises(MapFullError, match="lab is full"):
            lpm.update_batch(keys[2], u32(5))


@pytest.mark.usefixtures("no_batches")
def test_maps_without_batches_are_walked_one_by_one() -> None:
    with Map.create("lab", LPM, 8, 4, 10, 1) as lpm:
        lpm.update(u32(32) + b"abcd", u32(1))
        lpm.update(u32(16) + b"ab\0\0", u32(2))
        assert dict(lpm.items()) == {u32(32) + b"abcd": u32(1), u32(16) + b"ab\0\0": u32(2)}
        assert lpm.count() == 2


def test_shapes_and_entries_comparable() -> None:
    with Map.create("lab", HASH, 4, 8, 8) as map_:
        info = map_.info
    assert info.shape != replace(info, max_entries=9).shape
    assert info.entry == replace(info, max_entries=9).entry
    assert info.shape == replace(info, id=0).shape


def _split(data: bytes) -> list[bytes]:
    return [data[index : index + 4] for index in range(0, len(data), 4)]
