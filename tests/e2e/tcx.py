"""Which programs are attached to a link by TCX: asked of the kernel, since bpftool of Debian 12 doesn't know TCX."""

from __future__ import annotations

import ctypes
import os
import platform

from kproxy_ebpf.lab import Namespace
from kproxy_ebpf.linux.kernel import has_tcx

INGRESS, EGRESS = 46, 47  # linux/bpf.h: BPF_TCX_INGRESS, BPF_TCX_EGRESS
BPF_PROG_QUERY = 16
SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]


class Query(ctypes.Structure):
    _fields_ = (
        ("target_ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("program_ids", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * 4),
    )


def programs_at(node: Namespace, link: str, hook: int) -> list[int]:
    """The ids of the programs at a hook of `link`, in their order. Raises OSError."""
    if not has_tcx():
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    ids = (ctypes.c_uint32 * 64)()
    query = Query(target_ifindex=node.ifindex(link), attach_type=hook, program_ids=ctypes.addressof(ids), count=64)
    with node.inside():
        result = libc.syscall(SYS_BPF, BPF_PROG_QUERY, ctypes.byref(query), ctypes.sizeof(query))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"BPF_PROG_QUERY {link}: {os.strerror(number)}")
    return list(ids[: query.count])
