"""The structures and enums that the programs and the controller share: bpf_src/contract.h, in Python.

`layouts(family)` holds the structures as ctypes types, byte for byte what the programs see. Names are the C names in
CapWords; fields that end in ``_be`` are stored in network byte order and read and written as plain integers.
tests/unit/contract/test_layouts.py compares the two halves.
"""

from __future__ import annotations

from ctypes import Structure, c_char, c_uint8, c_uint16, c_uint32, c_uint64
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cache


class BackendFlags(IntFlag):
    READY = 1 << 0
    LOCAL = 1 << 1


class BackendState(IntEnum):
    """FREE: the id is unused. USABLE: new and established connections. KEEP: terminating, not ready or not chosen:
    established ones only. LEFT: left the Service while ready: TCP goes on, UDP moves. GONE: its pod is gone: TCP gets
    a RST, UDP moves.
    """

    FREE = 0
    USABLE = 1
    KEEP = 2
    LEFT = 3
    GONE = 4


class FrontendFlags(IntFlag):
    VIP_ONLY = 1 << 0
    DROP = 1 << 1
    SOURCE_RANGES = 1 << 2
    MAGLEV = 1 << 3


SCHEMA_BYTES = 16384

PEERS_MAX = 8

be16 = c_uint16.__ctype_be__


class Direction(IntEnum):
    FROM_POD = 0
    TO_POD = 1
    AT_SOCKET = 2


class Verdict(IntEnum):
    """What happened to a packet: the drop reason, the counter's index and the event's code."""

    UNTOUCHED = 0
    BALANCED = 1
    TRANSLATED = 2
    REVERSED = 3
    ICMP_ERROR_TRANSLATED = 4
    FRAGMENT = 5
    MIDSTREAM = 6
    MALFORMED = 7
    REJECTED_NO_BACKEND = 8
    REJECTED_UNDEFINED_PORT = 9
    RESET_BACKEND_GONE = 10
    DROPPED_FLOW_TABLE_FULL = 11
    DROPPED_NO_SOURCE_PORT = 12
    DROPPED_TRAFFIC_POLICY = 13
    DROPPED_SOURCE_RANGE = 14
    DROPPED_INTERNAL = 15
    CONNECTED = 16


class Way(IntEnum):
    """How a packet from or to a pod was sent on while Switches.REDIRECT is set; for each way of the stack, why."""

    PEER = 0
    STACK_ELSEWHERE = 1
    STACK_UNRECORDED = 2
    STACK_HOST_FLOW = 3
    STACK_SOURCE = 4
    STACK_KIND = 5
    STACK_LINK_LAYER = 6
    STACK_HOP_LIMIT = 7
    STACK_MTU = 8
    NEIGHBOUR = 9
    STACK_ROUTE = 10


class FlowState(IntEnum):
    NEW = 0
    ESTABLISHED = 1
    CLOSING = 2
    CLOSED = 3


class FlowFlags(IntFlag):
    REPLY = 1 << 0
    HAIRPIN = 1 << 1
    FIN_CLIENT = 1 << 2
    FIN_BACKEND = 1 << 3


class EventsLevel(IntEnum):
    OFF = 0
    NOTABLE = 1
    ALL = 2


class Switches(IntFlag):
    """What new connections meet: `Settings.switches`."""

    TC = 1 << 0
    SOCKET = 1 << 1
    REDIRECT = 1 << 2
    UDP_STAYS = 1 << 3


@dataclass(frozen=True, slots=True)
class Layouts:
    """The structures of one address family."""

    family: int
    FrontendKey: type[Structure]
    Frontend: type[Structure]
    Backend: type[Structure]
    Tuple: type[Structure]
    Flow: type[Structure]
    AffinityKey: type[Structure]
    Affinity: type[Structure]
    SourceRangeKey: type[Structure]
    Peer: type[Structure]
    PodLink: type[Structure]
    ClusterKey: type[Structure]


class Frontend(Structure):
    _fields_ = (
        ("service_id", c_uint32),
        ("slot_base", c_uint32),
        ("slot_count", c_uint32),
        ("flags", c_uint32),
        ("affinity_seconds", c_uint32),
    )


class Affinity(Structure):
    _fields_ = (
        ("backend_id", c_uint32),
        ("epoch", c_uint32),
        ("last_used_seconds", c_uint32),
        ("pad", c_uint32),
    )


class Standing(Structure):
    """May there be something of a kind: unless `settled` is one more than `made`."""

    _fields_ = (("made", c_uint32), ("settled", c_uint32))


class Pod(Structure):
    _fields_ = (("ifindex", c_uint32), ("mac", c_uint8 * 6), ("pad", c_uint16))


class HostFlow(Structure):
    _fields_ = (("ifindex", c_uint32), ("created_seconds", c_uint32))


class Counter(Structure):
    _fields_ = (("packets", c_uint64), ("bytes", c_uint64))


class ListedSocket(Structure):
    _fields_ = (("cookie", c_uint64), ("backend_id", c_uint32), ("epoch", c_uint32))


class Settings(Structure):
    _fields_ = (
        ("events_level", c_uint32),
        ("switches", c_uint32),
        ("host_netns_cookie", c_uint64),
        ("datagrams_since_seconds", c_uint32),
        ("pad", c_uint32),
    )


class Schema(Structure):
    _fields_ = (("text", c_char * SCHEMA_BYTES),)


class Event(Structure):
    """One layout for both families: an IPv4 address stands in the first four bytes."""

    _fields_ = (
        ("time_ns", c_uint64),
        ("source", c_uint8 * 16),
        ("destination", c_uint8 * 16),
        ("to_source", c_uint8 * 16),
        ("to_destination", c_uint8 * 16),
        ("source_port_be", be16),
        ("destination_port_be", be16),
        ("to_source_port_be", be16),
        ("to_destination_port_be", be16),
        ("ifindex", c_uint32),
        ("bytes", c_uint32),
        ("verdict", c_uint8),
        ("protocol", c_uint8),
        ("direction", c_uint8),
        ("family", c_uint8),
        ("pad", c_uint32),
    )


def address_bytes(family: int) -> int:
    """Length of an address in bytes: 4 or 16."""
    return {4: 4, 6: 16}[family]


def _structure(name: str, *fields: tuple[str, type]) -> type[Structure]:
    return type(name, (Structure,), {"_fields_": fields})


@cache
def layouts(family: int) -> Layouts:
    """The structures for `family` (4 or 6)."""
    address = c_uint8 * address_bytes(family)
    tuple_ = _structure(
        "Tuple",
        ("source", address),
        ("destination", address),
        ("source_port_be", be16),
        ("destination_port_be", be16),
        ("protocol", c_uint8),
        ("direction", c_uint8),
        ("pad", c_uint16),
    )
    return Layouts(
        family=family,
        FrontendKey=_structure(
            "FrontendKey", ("address", address), ("port_be", be16), ("protocol", c_uint8), ("pad", c_uint8)
        ),
        Frontend=Frontend,
        Backend=_structure(
            "Backend",
            ("address", address),
            ("port_be", be16),
            ("state", c_uint8),
            ("flags", c_uint8),
            ("epoch", c_uint32),
            ("service_id", c_uint32),
        ),
        Tuple=tuple_,
        Flow=_structure(
            "Flow",
            ("to", tuple_),
            ("backend_id", c_uint32),
            ("epoch", c_uint32),
            ("last_seen_seconds", c_uint32),
            ("service_id", c_uint32),
            ("state", c_uint8),
            ("flags", c_uint8),
            ("pad", c_uint16),
            ("created_seconds", c_uint32),
            ("ifindex", c_uint32),
        ),
        AffinityKey=_structure("AffinityKey", ("client", address), ("service_id", c_uint32)),
        Affinity=Affinity,
        SourceRangeKey=_structure(
            "SourceRangeKey", ("prefix_bits", c_uint32), ("service_id", c_uint32), ("client", address)
        ),
        Peer=_structure(
            "Peer",
            ("vip", address),
            ("backend", address),
            ("vip_port_be", be16),
            ("backend_port_be", be16),
            ("backend_id", c_uint32),
            ("epoch", c_uint32),
            ("last_used_seconds", c_uint32),
        ),
        PodLink=_structure(
            "PodLink",
            ("ifindex", c_uint32),
            ("bridge", c_uint32),
            ("flows", Standing),
            ("host_flows", Standing),
            ("unrecorded", Standing),
            ("pod", address),
            ("router_mac", c_uint8 * 6),
            ("pad", c_uint16),
            ("netns_id", c_uint32),
        ),
        ClusterKey=_structure("ClusterKey", ("prefix_bits", c_uint32), ("address", address)),
    )
