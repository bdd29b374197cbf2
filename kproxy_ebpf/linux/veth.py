"""The host's end of a pod's link, found from inside the pod's network namespace.

What the kernel says is taken, not what a CNI plugin has written: some write host-side names, some don't.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kproxy_ebpf.linux.netlink import Netlink, attribute, attributes
from kproxy_ebpf.linux.netns import entered

PAIRS = ("veth", "netkit")
"""Kinds of links that have two ends."""

_GETLINK, _GETNSID = 18, 90  # RTM_…
_IFNAME, _LINK, _LINKINFO, _LINK_NETNSID, _INFO_KIND = 3, 5, 18, 37, 1  # IFLA_…
_NSID, _NSID_FD = 1, 3  # NETNSA_…
_INTERFACE = struct.Struct("=BxHiII")  # struct ifinfomsg
_NUMBER = struct.Struct("=i")
_NSID_REQUEST = bytes(4)  # struct rtgenmsg: any family
_ABSENT = (errno.ENODEV, errno.EINVAL, errno.ERANGE)  # the last two: a name that no interface can have


class HostLink(NamedTuple):
    """A link in this network namespace."""

    ifindex: int
    name: str


class _Interface(NamedTuple):
    """`link`: the ifindex of the other end, in the namespace that has the number `netns_id` here (-1: this one)."""

    ifindex: int
    name: str
    kind: str
    link: int
    netns_id: int


def host_links(netns: int, names: Iterable[str]) -> dict[str, HostLink | None]:
    """The other ends of interfaces of another network namespace, given by a descriptor, that are in this one.

    A name that is not there is left out; None: the interface has no end here. For threads without a running loop.
    Raises NamespaceGoneError where the descriptor is none of a network namespace, OSError.
    """
    found: dict[str, HostLink | None] = {}
    with entered(Path(f"/proc/self/fd/{netns}")):
        inside = Netlink(socket.NETLINK_ROUTE, "interfaces of a pod")
    with inside, Netlink(socket.NETLINK_ROUTE, "links") as here:
        for name in names:
            interface = _interface(inside, name=name)
            if interface is not None:
                found[name] = _other_end(here, netns, interface)
    return found


def _other_end(here: Netlink, netns: int, interface: _Interface) -> HostLink | None:
    """Both ends must name each other: the same ifindexes are in use in every namespace."""
    if interface.kind not in PAIRS:
        return None
    end = _interface(here, ifindex=interface.link)
    if end is None or end.kind != interface.kind or end.link != interface.ifindex:
        return None
    return HostLink(end.ifindex, end.name) if end.netns_id == _number_of(here, netns) != -1 else None


def _interface(netlink: Netlink, *, ifindex: int = 0, name: str = "") -> _Interface | None:
    """None where there is none."""
    request = _INTERFACE.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    if name:
        request += attribute(_IFNAME, os.fsencode(name) + b"\0")
    try:
        (answer,) = netlink.ask(_GETLINK, request)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return None
    return _parse(answer)


def _parse(answer: memoryview) -> _Interface:
    name, kind, link, netns_id = "", "", 0, -1
    for number, payload in attributes(answer, _INTERFACE.size):
        if number == _IFNAME:
            name = _text(payload)
        elif number == _LINK:
            (link,) = _NUMBER.unpack(payload)
        elif number == _LINK_NETNSID:
            (netns_id,) = _NUMBER.unpack(payload)
        elif number == _LINKINFO:
            kind = next((_text(value) for inner, value in attributes(payload, 0) if inner == _INFO_KIND), "")
    return _Interface(_INTERFACE.unpack_from(answer)[2], name, kind, link, netns_id)


def _number_of(here: Netlink, netns: int) -> int:
    """The number that a namespace has in this one, -1 where it has none: no link of ours leads there."""
    (answer,) = here.ask(_GETNSID, _NSID_REQUEST + attribute(_NSID_FD, _NUMBER.pack(netns)))
    numbers = (payload for kind, payload in attributes(answer, len(_NSID_REQUEST)) if kind == _NSID)
    return next((int(_NUMBER.unpack(payload)[0]) for payload in numbers), -1)


def _text(payload: memoryview) -> str:
    return os.fsdecode(bytes(payload).rstrip(b"\0"))
