"""Attachment for kernels before 6.6: a clsact qdisc with one filter for each program.

Filters are ours by name. Others are never touched, and the qdisc is removed only where we made it (a marker in bpffs
remembers that, over restarts) and nobody else's filter is in it.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import TC_H_CLSACT
from pyroute2.protocols import ETH_P_IP, ETH_P_IPV6

from kproxy_ebpf.contract.maps import pinned_name
from kproxy_ebpf.linux import rtnetlink
from kproxy_ebpf.linux.bpf import Program
from kproxy_ebpf.linux.rtnetlink import requests

OWNER = "kproxy-ebpf/"
_HANDLE = 0x6B70
_PRIORITIES = {4: 50, 6: 51}  # one protocol for each priority
_ETHERTYPES = {4: ETH_P_IP, 6: ETH_P_IPV6}
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # of clsact
_PARENTS = {"from_pod": _INGRESS, "to_pod": _EGRESS, "from_uplink": _INGRESS, "to_uplink": _EGRESS}
_GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)  # EINVAL: no such qdisc


_CHANGING = threading.Lock()  # a qdisc that one thread has just made has no filters, and another would remove it


class Filter(NamedTuple):
    """Where a filter is; `info` is its priority (upper half) and its protocol."""

    parent: int
    handle: int
    info: int
    name: str


class Clsact:
    """The qdiscs and filters of this network namespace, for threads without a running loop.

    `markers` is the folder where qdiscs of ours are remembered. `programs` names the programs whose filters are meant;
    by default all of ours.
    """

    def __init__(self, markers: Path, programs: Iterable[str] = ("",)) -> None:
        self._markers = markers
        self._owned = tuple(f"{OWNER}{name}" for name in programs)

    def attach(self, ifindex: int, programs: Mapping[tuple[str, int], Program]) -> None:
        """Attach each (name, family), in this order, or replace what is there. Raises OSError."""
        with _CHANGING, requests(f"programs at interface {ifindex}") as route:
            self._ensure_qdisc(route, ifindex)
            for (name, family), program in programs.items():
                route.tc(
                    "replace-filter",
                    "bpf",
                    ifindex,
                    _HANDLE,
                    parent=_PARENTS[name],
                    prio=_PRIORITIES[family],
                    protocol=_ETHERTYPES[family],
                    classid=1,
                    fd=program.fd,
                    name=f"{OWNER}{pinned_name(name, family)}",
                    direct_action=True,
                )

    def detach(self, ifindex: int) -> None:
        """Remove our filters, and the qdisc if it is ours and empty. A link that is gone took both with it."""
        with _CHANGING, requests(f"filters at interface {ifindex}") as route:
            for found in _filters(route, ifindex):
                if found.name.startswith(self._owned):
                    with _gone_is_fine():
                        where = {"handle": found.handle, "parent": found.parent, "info": found.info}
                        route.tc("del-filter", "bpf", ifindex, **where)
            self._remove_qdisc(route, ifindex)

    def attached(self) -> set[int]:
        """The links that carry a filter of ours."""
        with requests("filters") as route:
            return {
                ifindex
                for ifindex in _qdiscs(route)
                if any(found.name.startswith(self._owned) for found in _filters(route, ifindex))
            }

    def carries(self, ifindex: int, programs: Iterable[str]) -> bool:
        """True if there is a filter for each of the programs. Raises OSError."""
        with requests(f"filters at interface {ifindex}") as route:
            names = {found.name for found in _filters(route, ifindex)}
        return names >= {f"{OWNER}{program}" for program in programs}

    def prune(self) -> None:
        """Forget the qdiscs whose links are gone."""
        with requests("qdiscs") as route:
            present = _qdiscs(route)
        for marker in self._markers.glob("*-clsact"):
            if int(marker.name.partition("-")[0]) not in present:
                marker.rmdir()

    def _ensure_qdisc(self, route: IPRoute, ifindex: int) -> None:
        try:
            route.tc("add", "clsact", ifindex)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            route.tc("change", "clsact", ifindex)  # changes nothing, and is refused where an ingress qdisc stands there
        else:
            self._marker(ifindex).mkdir(exist_ok=True)

    def _remove_qdisc(self, route: IPRoute, ifindex: int) -> None:
        marker = self._marker(ifindex)
        if not marker.exists():
            return
        if not _filters(route, ifindex):
            with _gone_is_fine():
                route.tc("del", "clsact", ifindex)
        marker.rmdir()

    def _marker(self, ifindex: int) -> Path:
        return self._markers / f"{ifindex}-clsact"


def _qdiscs(route: IPRoute) -> set[int]:
    """The links that have a clsact qdisc."""
    return {
        message["index"]
        for message in rtnetlink.dump(route.get_qdiscs)
        if message["parent"] == TC_H_CLSACT and message.get_attr("TCA_KIND") == "clsact"
    }


def _filters(route: IPRoute, ifindex: int) -> list[Filter]:
    """All filters at a link's hooks; none where link or qdisc are gone."""
    return [found for parent in (_INGRESS, _EGRESS) for found in _filters_at(route, ifindex, parent)]


def _filters_at(route: IPRoute, ifindex: int, parent: int) -> Iterator[Filter]:
    with _gone_is_fine():
        for message in rtnetlink.dump(partial(route.get_filters, ifindex, parent=parent)):
            if message["handle"]:  # 0: the head of a priority's chain, not a filter
                name = message.get_nested("TCA_OPTIONS", "TCA_BPF_NAME")
                yield Filter(parent, message["handle"], message["info"], rtnetlink.text(name))


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    """In the block a link or a filter may already be gone."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in _GONE:
            raise
