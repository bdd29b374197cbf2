"""The maps: their names, which belong to a family, and what stands in them."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_uint8, c_uint32
from typing import Any

from kproxy_ebpf.contract.layouts import (
    PEERS_MAX,
    Counter,
    Event,
    HostFlow,
    Pod,
    Settings,
    _structure,
    address_bytes,
    layouts,
)

FAMILIES = (4, 6)

"""The address families: each has its own programs, and its own of all maps that are not shared."""

SERVICE_TABLES = ("frontends", "slots", "backends", "source_ranges")

"""Point at one another: only all of them together can be taken over from another generation."""

FLOW_TABLES = ("flows", "affinity")

"""Written by the programs."""

FORWARDING_TABLES = ("pod_links", "pods", "host_flows", "cluster")

"""What the daemon has learned of the pods of this node and of the others, and what began the host's way. A link that
has nothing in `host_flows` says so in `pod_links`: only all of them together can be taken over.
"""

STORAGES = ("connections", "peers")

"""What sockets were told, in their own storage: freed with them, so there is nothing to list or to copy."""

FAMILY_MAPS = (*SERVICE_TABLES, "led", *FLOW_TABLES, *FORWARDING_TABLES, "programs", "predecessor", *STORAGES)

SHARED_MAPS = ("counters", "ways", "uplinks", "settings", "events", "schema")


def pinned_name(name: str, family: int) -> str:
    """Under which name a map or a program of one family is pinned."""
    return f"{name}_v{family}"


def _peers(peer: type) -> Iterator[tuple[str, type]]:
    return ((f"peer{number}", peer) for number in range(PEERS_MAX))


def entries(family: int) -> dict[str, tuple[Any, Any]]:
    """The types of keys and values of each map that another generation may take over or read, by its C name.

    What is not here (prog arrays, `schema`) belongs to one generation for good.
    """
    these = layouts(family)
    return {
        "frontends": (these.FrontendKey, these.Frontend),
        "slots": (c_uint32, c_uint32),
        "backends": (c_uint32, these.Backend),
        "led": (c_uint32, c_uint32),
        "source_ranges": (these.SourceRangeKey, c_uint32),
        "flows": (these.Tuple, these.Flow),
        "affinity": (these.AffinityKey, these.Affinity),
        "connections": (c_uint32, these.Peer),
        "peers": (c_uint32, _structure("Peers", ("lock", c_uint32), ("pad", c_uint32), *_peers(these.Peer))),
        "pod_links": (c_uint32, these.PodLink),
        "pods": (c_uint8 * address_bytes(family), Pod),
        "host_flows": (these.Tuple, HostFlow),
        "cluster": (these.ClusterKey, c_uint32),
        "uplinks": (c_uint32, c_uint32),
        "counters": (c_uint32, Counter),
        "ways": (c_uint32, Counter),
        "settings": (c_uint32, Settings),
        "events": (c_uint32, Event),
    }
