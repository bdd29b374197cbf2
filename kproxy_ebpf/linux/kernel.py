"""The version and the abilities of the running kernel, and waiting until it has dealt with packets under way."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from pathlib import Path

from kproxy_ebpf.errors import NodeError

OLDEST = (5, 10)
REDIRECT = (5, 12)
TCX = (6, 6)
_MEMBARRIER = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}  # system call numbers
_MEMBARRIER_GLOBAL = 1
_SURELY_DONE_SECONDS = 0.2
_BTF = Path("/sys/kernel/btf/vmlinux")
_MPTCP = Path("/proc/sys/net/mptcp")


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """(major, minor) of the running kernel, or of the `release` given."""
    match = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def wait_for_packets_under_way() -> None:
    """Return once every packet that was being received has been dealt with, connection tracking included.

    The kernel receives a packet, programs and all, within one RCU read-side section, and membarrier(2) waits for those.
    Where it does not (other machines, nohz_full) a packet's time is over long before this returns.
    """
    number = _MEMBARRIER.get(platform.machine())
    if number is None or ctypes.CDLL(None).syscall(number, _MEMBARRIER_GLOBAL, 0, 0) != 0:
        time.sleep(_SURELY_DONE_SECONDS)


def require_kernel() -> None:
    """Raises NodeError on a kernel that the programs can't be loaded on: the verifier's own words help nobody."""
    if kernel_version() < OLDEST:
        major, minor = OLDEST
        raise NodeError(f"Linux {os.uname().release} is too old: {major}.{minor} or later is needed")


def has_tcx() -> bool:
    """True if programs can be attached to links by TCX."""
    return kernel_version() >= TCX


def redirects() -> bool:
    """True if programs can redirect packets: they have to know that the target link still exists and that the packet
    fits it (bpf_check_mtu).
    """
    return kernel_version() >= REDIRECT


def lists_sockets() -> bool:
    """True if BPF iterators over sockets can read the sockets' storage and cookies."""
    return kernel_version() >= (5, 12) and _BTF.exists()


def tells_mptcp() -> bool:
    """True if a program can recognise a socket that is part of an MPTCP connection."""
    return kernel_version() >= (5, 19) and _BTF.exists() and _MPTCP.exists()
