"""libbpf's C functions, typed, and its errors as OSError.

Only what this project calls. Every function here returns -1 (or a negative errno) with errno set when it fails; `call`
turns that into an OSError whose message names the call and the object.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

from kproxy_ebpf.errors import NodeError

SAMPLE_CALLBACK = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)

U32_POINTER = POINTER(c_uint32)

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "bpf_obj_get": (c_char_p,),
    "bpf_obj_pin": (c_int, c_char_p),
    "bpf_obj_get_info_by_fd": (c_int, c_void_p, U32_POINTER),
    "bpf_btf_load": (c_char_p, c_size_t, c_void_p),
    "bpf_prog_load": (c_uint32, c_char_p, c_char_p, c_char_p, c_size_t, c_void_p),
    "libbpf_find_vmlinux_btf_id": (c_char_p, c_uint32),
    "bpf_map_create": (c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p),
    "bpf_map_lookup_elem": (c_int, c_char_p, c_void_p),
    "bpf_map_update_elem": (c_int, c_char_p, c_char_p, c_uint64),
    "bpf_map_delete_elem": (c_int, c_char_p),
    "bpf_map_get_next_key": (c_int, c_char_p, c_void_p),
    "bpf_map_update_batch": (c_int, c_char_p, c_char_p, U32_POINTER, c_void_p),
    "bpf_map_lookup_batch": (c_int, c_void_p, c_void_p, c_void_p, c_void_p, U32_POINTER, c_void_p),
    "bpf_prog_test_run_opts": (c_int, c_void_p),
    "bpf_link_create": (c_int, c_int, c_int, c_void_p),
    "bpf_link_update": (c_int, c_int, c_void_p),
    "bpf_link_detach": (c_int,),
    "bpf_iter_create": (c_int,),
    "libbpf_num_possible_cpus": (),
    "ring_buffer__epoll_fd": (c_void_p,),
    "ring_buffer__consume": (c_void_p,),
}


class MapCreateOptions(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("btf", c_uint32 * 4),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
        ("numa_node", c_uint32),
        ("map_ifindex", c_uint32),
    )


class ProgramLoadOptions(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_uint32),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("fd_array", c_void_p),
        ("func_info", c_void_p),
        ("func_info_count", c_uint32),
        ("func_info_record_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_count", c_uint32),
        ("line_info_record_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log", c_void_p),
    )


class BatchOptions(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("element_flags", c_uint64), ("flags", c_uint64))


class TestRunOptions(ctypes.Structure):
    __test__ = False
    _fields_ = (
        ("size", c_size_t),
        ("data_in", c_char_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_char_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class MapInfoStruct(ctypes.Structure):
    """The head of struct bpf_map_info; the kernel fills as much as it is given room for."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
    )


class ProgramInfoStruct(ctypes.Structure):
    """The head of struct bpf_prog_info."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_length", c_uint32),
        ("xlated_length", c_uint32),
        ("pointers", c_uint64 * 2),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("map_count", c_uint32),
        ("map_ids", c_uint64),
        ("name", ctypes.c_char * 16),
    )


class LinkInfoStruct(ctypes.Structure):
    """struct bpf_link_info of a TCX link. `ifindex` is 0 once the device is gone."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("program_id", c_uint32),
        ("pad", c_uint32),
        ("ifindex", c_uint32),
        ("attach_type", c_uint32),
    )


class CgroupLinkInfoStruct(ctypes.Structure):
    """struct bpf_link_info of a link to a cgroup. `cgroup_id` is 0 once that is gone."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("program_id", c_uint32),
        ("pad", c_uint32),
        ("cgroup_id", c_uint64),
        ("attach_type", c_uint32),
    )


@cache
def library() -> Any:
    """The loaded libbpf. Raises NodeError where the node has none."""
    try:
        libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise NodeError(f"libbpf.so.1 can't be loaded ({error}): install the package libbpf1") from None
    for name, arguments in _SIGNATURES.items():
        function = getattr(libbpf, name)
        function.argtypes, function.restype = arguments, c_int
    libbpf.ring_buffer__new.argtypes = (c_int, SAMPLE_CALLBACK, c_void_p, c_void_p)
    libbpf.ring_buffer__new.restype = c_void_p
    libbpf.ring_buffer__free.argtypes, libbpf.ring_buffer__free.restype = (c_void_p,), None
    libbpf.libbpf_set_print(None)  # errors are reported by their callers, not on stderr
    return libbpf


def call(name: str, about: object, *arguments: Any) -> int:
    """Call `name` and return its result. Raises OSError with a message such as `bpf_obj_get /sys/fs/bpf/x: …`."""
    result: int = getattr(library(), name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name} {about}: {os.strerror(number)}")
    return result


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map holds for each key."""
    return call("libbpf_num_possible_cpus", "")
