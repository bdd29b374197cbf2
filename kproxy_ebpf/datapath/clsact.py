"""Attachment for kernels before 6.6: a clsact qdisc with one filter for each program.

Filters are ours by name. Others are never touched, and the qdisc is removed only where we made it (a marker in bpffs
remembers that, over restarts) and nobody else's filter is in it.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kproxy_ebpf.datapath import netlink
from kproxy_ebpf.datapath.bpf import Program
from kproxy_ebpf.datapath.netlink import Netlink, attribute, parse_attributes

OWNER = "kproxy-ebpf/"
_HANDLE = 0x6B70
_PRIORITIES = {4: 50, 6: 51}  # one protocol for each priority
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_PARENTS = {"from_pod": 0xFFFFFFF2, "to_pod": 0xFFFFFFF3}  # clsact's ingress and egress
_CLSACT, _QDISC_HANDLE = 0xFFFFFFF1, 0xFFFF0000

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_CLASSID, _TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS = 3, 6, 7, 8
_DIRECT_ACTION = 1
_GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)  # EINVAL: no such qdisc
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info


class Filter(NamedTuple):
    """Where a filter is; `info` is its priority (upper half) and its protocol."""

    parent: int
    handle: int
    info: int
    name: str


class Clsact:
    """The qdiscs and filters of this network namespace. `markers` is the folder for what must be remembered."""

    def __init__(self, markers: Path) -> None:
        self._markers = markers
        self._netlink = Netlink()

    def attach(self, ifindex: int, name: str, family: int, program: Program) -> None:
        """Attach `program` as `name` (from_pod or to_pod), or replace the one that is there. Raises OSError."""
        self._ensure_qdisc(ifindex)
        options = (
            attribute(_TCA_BPF_CLASSID, _u32(1))
            + attribute(_TCA_BPF_FD, _u32(program.fd))
            + attribute(_TCA_BPF_NAME, f"{OWNER}{name}_v{family}".encode() + b"\0")
            + attribute(_TCA_BPF_FLAGS, _u32(_DIRECT_ACTION))
        )
        info = _PRIORITIES[family] << 16 | socket.htons(_ETHERTYPES[family])
        body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, _HANDLE, _PARENTS[name], info)
        body += attribute(_TCA_KIND, b"bpf\0") + attribute(_TCA_OPTIONS, options)
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
        self._netlink.request(netlink.RTM_NEWTFILTER, body, flags, f"filter {name} at interface {ifindex}")

    def detach(self, ifindex: int) -> None:
        """Remove our filters, and the qdisc if it is ours and empty. A link that is gone took both with it."""
        for parent in _PARENTS.values():
            for found in self._filters(ifindex, parent):
                if found.name.startswith(OWNER):
                    self._delete_filter(ifindex, found)
        self._remove_qdisc(ifindex)

    def attached(self) -> set[int]:
        """The links that carry a filter of ours."""
        return {
            ifindex
            for ifindex in self._qdiscs()
            for parent in _PARENTS.values()
            for found in self._filters(ifindex, parent)
            if found.name.startswith(OWNER)
        }

    def prune(self) -> None:
        """Forget the qdiscs whose links are gone."""
        present = set(self._qdiscs())
        for marker in self._markers.glob("*-clsact"):
            if int(marker.name.partition("-")[0]) not in present:
                marker.rmdir()

    def close(self) -> None:
        self._netlink.close()

    def _qdiscs(self) -> Iterator[int]:
        body = _TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        for message in self._netlink.dump(netlink.RTM_GETQDISC, body):
            _, ifindex, _, parent, _ = _TCMSG.unpack_from(message.body)
            if parent == _CLSACT and parse_attributes(message.body[_TCMSG.size :])[_TCA_KIND] == b"clsact\0":
                yield ifindex

    def _ensure_qdisc(self, ifindex: int) -> None:
        if ifindex in self._qdiscs():
            return
        body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, _QDISC_HANDLE, _CLSACT, 0) + attribute(_TCA_KIND, b"clsact\0")
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        self._netlink.request(netlink.RTM_NEWQDISC, body, flags, f"clsact at interface {ifindex}")
        self._marker(ifindex).mkdir(exist_ok=True)

    def _remove_qdisc(self, ifindex: int) -> None:
        marker = self._marker(ifindex)
        if not marker.exists():
            return
        if not any(self._filters(ifindex, parent) for parent in _PARENTS.values()):
            body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, _QDISC_HANDLE, _CLSACT, 0)
            with _gone_is_fine():
                self._netlink.request(netlink.RTM_DELQDISC, body, about=f"clsact at interface {ifindex}")
        marker.rmdir()

    def _filters(self, ifindex: int, parent: int) -> list[Filter]:
        """All filters at one hook; none where link or qdisc are gone."""
        body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, parent, 0)
        try:
            messages = self._netlink.dump(netlink.RTM_GETTFILTER, body)
        except OSError as error:
            if error.errno in _GONE:
                return []
            raise
        filters = []
        for message in messages:
            _, _, handle, _, info = _TCMSG.unpack_from(message.body)
            if handle:  # 0: the head of a priority's chain, not a filter
                options = parse_attributes(parse_attributes(message.body[_TCMSG.size :]).get(_TCA_OPTIONS, b""))
                filters.append(Filter(parent, handle, info, netlink.text(options.get(_TCA_BPF_NAME, b""))))
        return filters

    def _delete_filter(self, ifindex: int, found: Filter) -> None:
        body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, found.handle, found.parent, found.info)
        with _gone_is_fine():
            self._netlink.request(netlink.RTM_DELTFILTER, body + attribute(_TCA_KIND, b"bpf\0"), about=found.name)

    def _marker(self, ifindex: int) -> Path:
        return self._markers / f"{ifindex}-clsact"


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    """The link or the filter went away first."""
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)
