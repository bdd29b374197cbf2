"""Maps, programs and links as objects that own a file descriptor. Keys and values are packed bytes.

Failures are OSError (see libbpf.call), a full map is MapFullError.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Self, TypeVar

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.linux import libbpf
from kproxy_ebpf.linux.libbpf import call, possible_cpus

Info = TypeVar("Info", bound=ctypes.Structure)

_ROOM = 65536  # for what a test run makes of a packet
CHECKSUM_COMPLETE = 1 << 2  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE
NO_EXIST = 1  # an update's flag: fail with EEXIST where the key is there

ARRAY, PERCPU_ARRAY, LRU_HASH = 2, 6, 9  # enum bpf_map_type
_NO_BATCHES = {errno.EINVAL, errno.EOPNOTSUPP, 524}  # 524: the kernel's own ENOTSUPP


class Descriptor:
    """Owns one file descriptor of a BPF object; `name` is for messages."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open what is pinned at `path`. Raises OSError (ENOENT where nothing is)."""
        return cls(call("bpf_obj_get", path, bytes(path)), path.name)

    def pin(self, path: Path) -> None:
        call("bpf_obj_pin", path, self.fd, bytes(path))

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def _fill(self, info: Info) -> Info:
        size = ctypes.c_uint32(ctypes.sizeof(info))
        call("bpf_obj_get_info_by_fd", self.name, self.fd, ctypes.byref(info), ctypes.byref(size))
        return info

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class MapInfo:
    """A map's shape, and its id. `max_entries` counts entries (bytes for a ring buffer)."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int

    @property
    def shape(self) -> tuple[int, ...]:
        """What two maps must share so that one can stand in for the other."""
        return self.type, self.key_size, self.value_size, self.max_entries, self.flags

    @property
    def entry(self) -> tuple[int, ...]:
        """What two maps must share so that entries can be copied from one to the other."""
        return self.type, self.key_size, self.value_size


class Map(Descriptor):
    """A BPF map. A per-CPU map's value is all CPUs' values, each padded to 8 bytes."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        raw = self._fill(libbpf.MapInfoStruct())
        self.info = MapInfo(raw.type, raw.id, raw.key_size, raw.value_size, raw.max_entries, raw.map_flags)
        stride = (raw.value_size + 7) & ~7
        self._value_size = stride * possible_cpus() if raw.type == PERCPU_ARRAY else raw.value_size

    @classmethod
    def create(
        cls,
        name: str,
        type_: int,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
        btf: tuple[int, int, int] = (0, 0, 0),
    ) -> Self:
        """Make a map. `btf`: a descriptor of loaded BTF, and the ids there of the types of key and value."""
        options = libbpf.MapCreateOptions(size=ctypes.sizeof(libbpf.MapCreateOptions), map_flags=flags, btf=(*btf, 0))
        kernel_name = name.encode()[:15]
        arguments = (type_, kernel_name, key_size, value_size, max_entries, ctypes.byref(options))
        return cls(call("bpf_map_create", name, *arguments), name)

    def lookup(self, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self._value_size)
        try:
            call("bpf_map_lookup_elem", self.name, self.fd, self._checked(key), value)
        except FileNotFoundError:
            return None
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Write one entry. Raises MapFullError, FileExistsError (with NO_EXIST), OSError."""
        if len(value) != self._value_size:
            raise ValueError(f"{self.name}: a value has {self._value_size} bytes, not {len(value)}")
        with self._full_named():
            call("bpf_map_update_elem", self.name, self.fd, self._checked(key), value, flags)

    def delete(self, key: bytes) -> bool:
        """Remove one entry; False where there was none."""
        try:
            call("bpf_map_delete_elem", self.name, self.fd, self._checked(key))
        except FileNotFoundError:
            return False
        return True

    def update_batch(self, keys: bytes, values: bytes) -> None:
        """Write packed entries in one system call, or where the kernel has no batches for this type of map (LPM before
        5.17) one by one. Raises MapFullError; what came before the misfit is written.
        """
        count, rest = divmod(len(keys), self.info.key_size)
        if rest or len(values) != count * self._value_size:
            raise ValueError(f"{self.name}: {len(keys)} bytes of keys do not fit {len(values)} bytes of values")
        if not count:
            return
        options = libbpf.BatchOptions(size=ctypes.sizeof(libbpf.BatchOptions))
        done = ctypes.c_uint32(count)
        try:
            with self._full_named():
                arguments = (keys, values, ctypes.byref(done), ctypes.byref(options))
                call("bpf_map_update_batch", self.name, self.fd, *arguments)
        except OSError as error:
            if error.errno not in _NO_BATCHES:
                raise
            for key, value in self._entries(keys, values):
                self.update(key, value)

    def keys(self) -> Iterator[bytes]:
        """All keys, one system call each. An entry removed meanwhile restarts the walk: a key may come twice."""
        key = None
        following = ctypes.create_string_buffer(self.info.key_size)
        while True:
            try:
                call("bpf_map_get_next_key", self.name, self.fd, key, following)
            except FileNotFoundError:
                return
            key = following.raw
            yield key

    def chunks(self, size: int = 4096) -> Iterator[tuple[bytes, bytes]]:
        """All entries as (packed keys, packed values), up to `size` entries at a time.

        Map types without batches (LPM before 5.17) are walked one by one.
        """
        batches = _BatchReader(self, size)
        try:
            first = batches.read()
        except OSError as error:
            if error.errno not in _NO_BATCHES:
                raise
            for key in self.keys():
                value = self.lookup(key)
                if value is not None:
                    yield key, value
            return
        yield first
        while not batches.finished:
            yield batches.read()

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, read in batches."""
        for keys, values in self.chunks():
            yield from self._entries(keys, values)

    def count(self) -> int:
        """The number of entries, by walking all of them."""
        return sum(len(keys) for keys, _ in self.chunks()) // self.info.key_size

    def _entries(self, keys: bytes, values: bytes) -> Iterator[tuple[bytes, bytes]]:
        key, value = Struct(f"{self.info.key_size}s"), Struct(f"{self._value_size}s")
        return zip(_split(key, keys), _split(value, values), strict=True)

    def _checked(self, key: bytes) -> bytes:
        if len(key) != self.info.key_size:
            raise ValueError(f"{self.name}: a key has {self.info.key_size} bytes, not {len(key)}")
        return key

    @contextmanager
    def _full_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.E2BIG, errno.ENOSPC):  # ENOSPC: LPM
                raise MapFullError(self.name, self.info.max_entries) from error
            raise


def _split(element: Struct, data: bytes) -> Iterator[bytes]:
    return (fields[0] for fields in element.iter_unpack(data))


class _BatchReader:
    """Reads a map with BPF_MAP_LOOKUP_BATCH; the kernel's cursor between calls is a bucket number or a key."""

    def __init__(self, map_: Map, size: int) -> None:
        self.map = map_
        self.finished = False
        self._size = min(size, map_.info.max_entries)
        self._cursor: ctypes.Array[ctypes.c_char] | None = None
        self._options = libbpf.BatchOptions(size=ctypes.sizeof(libbpf.BatchOptions))

    def read(self) -> tuple[bytes, bytes]:
        """The next entries, none at the end. Raises OSError."""
        key_size, value_size = self.map.info.key_size, self.map._value_size
        while True:
            keys = ctypes.create_string_buffer(self._size * key_size)
            values = ctypes.create_string_buffer(self._size * value_size)
            cursor = ctypes.create_string_buffer(max(key_size, 8))
            count = ctypes.c_uint32(self._size)
            arguments = (self._cursor, cursor, keys, values, ctypes.byref(count), ctypes.byref(self._options))
            try:
                call("bpf_map_lookup_batch", self.map.name, self.map.fd, *arguments)
            except FileNotFoundError:
                self.finished = True
            except OSError as error:
                if error.errno != errno.ENOSPC:  # a bucket holds more than there is room for
                    raise
                self._size *= 2
                continue
            self._cursor = cursor
            return keys.raw[: count.value * key_size], values.raw[: count.value * value_size]


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a program did to a packet; `nanoseconds` is the mean over all repetitions."""

    __test__ = False

    retval: int
    data: bytes
    context: bytes
    nanoseconds: int


class Program(Descriptor):
    """A loaded BPF program."""

    @property
    def id(self) -> int:
        return int(self._fill(libbpf.ProgramInfoStruct()).id)

    def test_run(self, data: bytes, context: bytes = b"", repeat: int = 1, *, flags: int = 0) -> TestRun:
        """Run the program on the frame `data` (14 bytes or more), without a device. `context`: a struct __sk_buff.
        With the flag CHECKSUM_COMPLETE (Linux 6.18) raises EBADMSG if the kernel's sum does not stay the packet's.
        """
        out, context_out = ctypes.create_string_buffer(_ROOM), ctypes.create_string_buffer(max(len(context), 1))
        options = libbpf.TestRunOptions(
            size=ctypes.sizeof(libbpf.TestRunOptions),
            data_in=data,
            data_size_in=len(data),
            data_out=ctypes.addressof(out),
            data_size_out=_ROOM,
            ctx_in=context or None,
            ctx_size_in=len(context),
            ctx_out=ctypes.addressof(context_out) if context else None,
            ctx_size_out=len(context),
            repeat=repeat,
            flags=flags,
        )
        call("bpf_prog_test_run_opts", self.name, self.fd, ctypes.byref(options))
        data_out, context = out.raw[: options.data_size_out], context_out.raw[: options.ctx_size_out]
        return TestRun(options.retval, data_out, context, options.duration)


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """Of a TCX link. `ifindex` is 0 once the device is gone."""

    program_id: int
    ifindex: int
    attach_type: int


class Link(Descriptor):
    """A program's place at a network device (TCX) or a cgroup: it lives as long as a descriptor or a pin of it."""

    @classmethod
    def create(cls, program: Program, target: int, attach_type: int) -> Self:
        """Attach behind whatever is at `target`, an interface's index or a cgroup's descriptor.

        Raises OSError (EINVAL where the kernel has no TCX).
        """
        about = f"{program.name} at {target}"
        return cls(call("bpf_link_create", about, program.fd, target, attach_type, None), about)

    @property
    def info(self) -> LinkInfo:
        raw = self._fill(libbpf.LinkInfoStruct())
        return LinkInfo(raw.program_id, raw.ifindex, raw.attach_type)

    def update(self, program: Program) -> None:
        """Replace the program, without a packet that meets neither."""
        call("bpf_link_update", f"{self.name} to {program.name}", self.fd, program.fd, None)

    def detach(self) -> None:
        """Detach at once, whoever else holds the link. Harmless where the device is gone."""
        call("bpf_link_detach", self.name, self.fd)
