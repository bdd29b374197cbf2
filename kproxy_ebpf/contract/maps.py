"""The maps: one row for each, and what follows from the rows."""

from __future__ import annotations

from ctypes import c_uint32
from enum import Enum, auto
from typing import Any, NamedTuple

from kproxy_ebpf.contract.layouts import Layouts, layouts
from kproxy_ebpf.contract.scalars import address_type

FAMILIES = (4, 6)

"""The address families: each has its own programs, and its own of all maps that are not shared."""


class Group(Enum):
    """What becomes of a map's entries when another generation follows."""

    SERVICES = auto()  # the tables point at one another: they are taken over all together or not at all
    FLOWS = auto()  # written by the programs, so copied once more while those of both generations run
    FORWARDING = auto()  # a link that has nothing in host_flows says so in pod_links: taken over all together
    STORAGES = auto()  # in the sockets and freed with them: there is nothing to list or to copy
    SINGLE = auto()  # each is taken over by itself
    FIXED = auto()  # of one generation for good


class Row(NamedTuple):
    """One map as bpf_src/maps.h declares it. Key and value: names in Layouts, or address, u32. `size`: the
    constant that is its max_entries; none for sockets' storage.
    """

    name: str
    key: str
    value: str
    group: Group
    size: str = ""
    is_shared: bool = False


MAPS = (
    Row("frontends", "FrontendKey", "Frontend", Group.SERVICES, "FRONTENDS_MAX"),
    Row("backends", "u32", "Backend", Group.SERVICES, "BACKENDS_MAX"),
    Row("slots", "u32", "u32", Group.SERVICES, "SLOTS_MAX"),
    Row("source_ranges", "SourceRangeKey", "u32", Group.SERVICES, "SOURCE_RANGES_MAX"),
    Row("led", "u32", "u32", Group.SINGLE, "BACKENDS_MAX"),
    Row("flows", "Tuple", "Flow", Group.FLOWS, "FLOWS_MAX"),
    Row("fragments", "FragmentKey", "Fragment", Group.SINGLE, "FRAGMENTS_MAX"),
    Row("affinity", "AffinityKey", "Affinity", Group.FLOWS, "AFFINITY_MAX"),
    Row("pod_links", "u32", "PodLink", Group.FORWARDING, "POD_LINKS_MAX"),
    Row("pods", "address", "Pod", Group.FORWARDING, "PODS_MAX"),
    Row("host_flows", "Tuple", "HostFlow", Group.FORWARDING, "HOST_FLOWS_MAX"),
    Row("cluster", "ClusterKey", "u32", Group.FORWARDING, "CLUSTER_MAX"),
    Row("connections", "u32", "Peer", Group.STORAGES),
    Row("programs", "u32", "u32", Group.FIXED, "PROGRAM_COUNT"),
    Row("predecessor", "u32", "u32", Group.FIXED, "PREDECESSOR_COUNT"),
    Row("counters", "u32", "Counter", Group.SINGLE, "VERDICT_COUNT", is_shared=True),
    Row("ways", "u32", "Counter", Group.SINGLE, "WAY_COUNT", is_shared=True),
    Row("uplinks", "u32", "u32", Group.SINGLE, "UPLINKS_MAX", is_shared=True),
    Row("settings", "u32", "Settings", Group.SINGLE, "1", is_shared=True),
    Row("events", "u32", "Event", Group.SINGLE, "EVENTS_BYTES", is_shared=True),
    Row("schema", "u32", "Schema", Group.FIXED, "1", is_shared=True),
)

FAMILY_MAPS = tuple(row.name for row in MAPS if not row.is_shared)
SHARED_MAPS = tuple(row.name for row in MAPS if row.is_shared)


def of_group(group: Group) -> tuple[str, ...]:
    """The names of a group's maps."""
    return tuple(row.name for row in MAPS if row.group is group)


SERVICE_TABLES = of_group(Group.SERVICES)
FLOW_TABLES = of_group(Group.FLOWS)
FORWARDING_TABLES = of_group(Group.FORWARDING)
STORAGES = of_group(Group.STORAGES)


def pinned_name(name: str, family: int) -> str:
    """Under which name a map or a program of one family is pinned."""
    return f"{name}_v{family}"


def entries(family: int) -> dict[str, tuple[Any, Any]]:
    """The types of keys and values of each map that another generation may take over or read, by its C name."""
    types = _types(layouts(family))
    return {row.name: (types[row.key], types[row.value]) for row in MAPS if row.group is not Group.FIXED}


def _types(these: Layouts) -> dict[str, Any]:
    structures = {name: getattr(these, name) for name in Layouts.__dataclass_fields__}
    return structures | {"u32": c_uint32, "address": address_type(these.family)}
