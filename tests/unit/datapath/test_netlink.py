from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy_ebpf.datapath import netlink
from kproxy_ebpf.datapath.links import LinkChange, parse_default_route, parse_link
from kproxy_ebpf.datapath.netlink import Message, Netlink, attribute, parse_attributes, parse_messages

PAYLOADS = st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40), max_size=8)


@given(PAYLOADS)
def test_attributes(payloads: dict[int, bytes]) -> None:
    data = b"".join(attribute(type_, payload) for type_, payload in payloads.items())
    assert len(data) % 4 == 0
    assert parse_attributes(data) == payloads


@given(st.binary(max_size=200))
def test_garbage_ends(data: bytes) -> None:
    list(parse_messages(data))
    parse_attributes(data)


def link(ifindex: int, name: str, type_: int = netlink.RTM_NEWLINK, family: int = 0) -> Message:
    body = struct.pack("=BxHiII", family, 1, ifindex, 0, 0) + attribute(3, name.encode() + b"\0")
    return Message(type_, body)


def test_links() -> None:
    assert parse_link(link(7, "veth1")) == LinkChange(7, "veth1")
    assert parse_link(link(7, "veth1", netlink.RTM_DELLINK)) == LinkChange(7, "")
    assert parse_link(link(7, "veth1", netlink.RTM_DELLINK, socket.AF_BRIDGE)) is None, "it only left its bridge"


def route(bits: int, *attributes: bytes, type_: int = 1) -> Message:
    return Message(netlink.RTM_NEWROUTE, struct.pack("=8BI", 2, bits, 0, 0, 254, 3, 0, type_, 0) + b"".join(attributes))


def test_default_routes() -> None:
    through_3 = attribute(4, struct.pack("=i", 3))
    assert parse_default_route(route(0, through_3)) == {3}
    assert parse_default_route(route(24, through_3)) is None
    assert parse_default_route(route(0, through_3, type_=7)) is None, "unreachable"
    gateway = attribute(5, bytes(4))
    hops = b"".join(struct.pack("=HBBi", 8 + len(gateway), 0, 0, ifindex) + gateway for ifindex in (4, 5))
    assert parse_default_route(route(0, attribute(9, hops))) == {4, 5}
    assert parse_default_route(route(0, attribute(9, bytes(16)))) == {0}, "a length of 0 must not hang"


def test_the_kernel_answers() -> None:
    with Netlink() as requests:
        links = requests.dump(netlink.RTM_GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0))
        names = {change.name: change.ifindex for change in map(parse_link, links) if change}
        assert names["lo"] == socket.if_nametoindex("lo")
        with pytest.raises(OSError, match="no such thing") as caught:
            requests.request(netlink.RTM_DELLINK, struct.pack("=BxHiII", 0, 0, 2**30, 0, 0), about="no such thing")
        assert caught.value.errno is not None
        assert os.strerror(caught.value.errno) in str(caught.value)
        assert requests.dump(netlink.RTM_GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0)), "still in step"
