"""The programs: their names and the hooks that they are made for."""

from __future__ import annotations

from enum import IntEnum


class CgroupHook(IntEnum):
    """Of enum bpf_attach_type (linux/bpf.h), those where the socket programs are attached."""

    CONNECT4 = 10
    CONNECT6 = 11
    GETPEERNAME4 = 29
    GETPEERNAME6 = 30


PROGRAMS = (
    "from_pod",
    "to_pod",
    "fragment_from_pod",
    "fragment_to_pod",
    "reject",
    "icmp_error",
    "sctp_checksum",
    "from_uplink",
    "to_uplink",
    "uplink_error",
)

"""The functions in pod.c and uplink.c that are programs; pinned with the suffix _v4 or _v6."""

SOCKET_PROGRAMS: dict[int, dict[str, CgroupHook]] = {
    4: {
        "connect": CgroupHook.CONNECT4,
        "connect_mapped": CgroupHook.CONNECT6,
        "getpeername": CgroupHook.GETPEERNAME4,
        "getpeername_mapped": CgroupHook.GETPEERNAME6,
    },
    6: {
        "connect": CgroupHook.CONNECT6,
        "getpeername": CgroupHook.GETPEERNAME6,
    },
}

"""By family: the functions in cgroup.c that are programs, and the hook that each is made for."""

LISTING_PROGRAMS = {"list_tcp": "bpf_iter__tcp", "list_udp": "bpf_iter__udp"}

"""The programs that list what is in `connections`, where the kernel lets them, and their functions in socket/list.h.

BCC asks for those names.
"""
