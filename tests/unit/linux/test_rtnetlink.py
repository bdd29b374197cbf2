"""Links, routes and neighbours, from what pyroute2 decodes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import time
from typing import Any

import pytest
import uvloop
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from kproxy_ebpf.linux import rtnetlink
from kproxy_ebpf.linux.rtnetlink import LinkChange, dump, parse_default_route, parse_link, requests


def link(ifindex: int, name: str | bytes, event: str = "RTM_NEWLINK", family: int = socket.AF_UNSPEC) -> Any:
    return decoded(ifinfmsg(), event, index=ifindex, family=family, attrs=[("IFLA_IFNAME", name)])


def route(bits: int, *attributes: tuple[str, Any], type_: int = 1) -> Any:
    return decoded(rtmsg(), "RTM_NEWROUTE", family=socket.AF_INET, dst_len=bits, type=type_, attrs=[*attributes])


def decoded(message: Any, event: str, **fields: Any) -> Any:
    """What would be heard if the kernel sent a message with these fields."""
    message.update(fields)
    message.encode()
    heard = type(message)(message.data)
    heard.decode()
    heard["event"] = event
    return heard


def test_links() -> None:
    assert parse_link(link(7, "veth1")) == LinkChange(7, "veth1")
    assert parse_link(link(7, "veth1", "RTM_DELLINK")) == LinkChange(7, "")
    assert parse_link(link(7, "veth1", "RTM_DELLINK", socket.AF_BRIDGE)) is None, "it only left its bridge"
    assert parse_link(link(7, b"veth\xff")) == LinkChange(7, "veth\udcff"), "a name may hold any byte"


def test_default_routes() -> None:
    through_3 = ("RTA_OIF", 3)
    assert parse_default_route(route(0, through_3)) == {3}
    assert parse_default_route(route(24, through_3)) is None
    assert parse_default_route(route(0, through_3, type_=7)) is None, "unreachable"
    hops = [{"oif": ifindex, "attrs": [("RTA_GATEWAY", "192.0.2.1")]} for ifindex in (4, 5)]
    assert parse_default_route(route(0, ("RTA_MULTIPATH", hops))) == {4, 5}


def test_an_interrupted_dump_is_asked_for_again() -> None:
    answers = [[{"header": {"flags": 0}}, {"header": {"flags": 0x12}}], [{"header": {"flags": 2}}]]
    assert dump(lambda: answers.pop(0)) == [{"header": {"flags": 2}}]


def test_the_kernel_answers() -> None:
    assert rtnetlink.links()[socket.if_nametoindex("lo")] == "lo"
    refusal = pytest.raises(OSError, match=f"no such thing: {os.strerror(errno.ENODEV)}")
    with refusal as caught, requests("no such thing") as route:
        route.link("del", index=2**30)
    assert caught.value.errno == errno.ENODEV


def test_listening_ends_at_once_beside_uvloop() -> None:
    async def main() -> float:
        heard = asyncio.Event()
        task = asyncio.create_task(rtnetlink.listen(lambda change: heard.set() if change is None else None))
        await asyncio.wait_for(heard.wait(), 10)
        assert "rtnetlink_0" in {thread.name for thread in threading.enumerate()}
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - began

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) < 1
    assert "rtnetlink_0" not in {thread.name for thread in threading.enumerate()}


def test_a_listener_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtnetlink, "_GROUPS", "nonsense")
    with pytest.raises((TypeError, OSError, KeyError)):
        asyncio.run(asyncio.wait_for(rtnetlink.listen(lambda _: None), 10))
