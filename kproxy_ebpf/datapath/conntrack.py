"""What the host's connection tracking has translated: connections of kube-proxy's, which must stay as they are."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import IPS_DST_NAT, NFCTAttrTuple, NFCTSocket

from kproxy_ebpf.datapath.rtnetlink import Message

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_ADDRESSES = {4: ("CTA_IP_V4_SRC", "CTA_IP_V4_DST"), 6: ("CTA_IP_V6_SRC", "CTA_IP_V6_DST")}
_NO_CONNTRACK = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)


class Translated(NamedTuple):
    """A connection whose destination was translated: what the client sends, and what the backend answers to. Addresses
    are packed, ports plain.
    """

    protocol: int
    client: bytes
    client_port: int
    frontend: bytes
    frontend_port: int
    backend: bytes
    backend_port: int
    source: bytes
    """The client as the backend sees it."""
    source_port: int


def translated(family: int, protocol: int) -> list[Translated]:
    """The connections of this network namespace that were DNATed; none where nothing is tracked. Raises OSError.

    For threads without a running loop. 70 µs for each.
    """
    try:
        with NFCTSocket(nfgen_family=_FAMILIES[family]) as conntrack:
            return list(_parsed(family, protocol, conntrack))
    except (NetlinkError, OSError) as error:
        number = error.code if isinstance(error, NetlinkError) else error.errno
        if number in _NO_CONNTRACK:
            return []
        raise OSError(number, f"connection tracking table: {os.strerror(number or 0)}") from error


def _parsed(family: int, protocol: int, conntrack: NFCTSocket) -> Iterator[Translated]:
    """Kernels before 5.19 do not filter by status, so it is looked at again."""
    wanted = NFCTAttrTuple(family=_FAMILIES[family], proto=protocol)
    for message in conntrack.dump(tuple_orig=wanted, status=IPS_DST_NAT, status_mask=IPS_DST_NAT):
        if message.get_attr("CTA_STATUS") & IPS_DST_NAT:
            original, reply = (_ends(family, message.get_attr(f"CTA_TUPLE_{way}")) for way in ("ORIG", "REPLY"))
            yield Translated(protocol, *original, *reply)


def _ends(family: int, way: Message) -> tuple[bytes, int, bytes, int]:
    addresses, protocol = way.get_attr("CTA_TUPLE_IP"), way.get_attr("CTA_TUPLE_PROTO")
    source, destination = (socket.inet_pton(_FAMILIES[family], addresses.get_attr(name)) for name in _ADDRESSES[family])
    return source, protocol.get_attr("CTA_PROTO_SRC_PORT"), destination, protocol.get_attr("CTA_PROTO_DST_PORT")
