"""An upgrade from a version that led UDP sockets at the socket: those that are open go on, and no other is led."""

from __future__ import annotations

import pytest
from sockets import aborted, asked, asked_by_datagram, connected, counted, socket_of, terminating, vip_of
from versions import LEADS_DATAGRAMS
from worlds import UDP_PORT, in_worlds

from kproxy_ebpf.lab.traffic import ask
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

pytestmark = [in_worlds("hybrid"), pytest.mark.timeout(600)]  # it compiles


@pytest.fixture
def service(world):
    service = world.service(world.webs[:1])
    yield service
    for pin in pins(world):
        pin.unlink()


def pins(world):
    """The links of programs for datagrams, which only the earlier version has."""
    links = world.daemon.bpffs / "kproxy-ebpf/links"
    return [*links.glob("cgroup-sendmsg_*"), *links.glob("cgroup-recvmsg_*")]


@pytest.mark.parametrize("upgrade", [{"edits": LEADS_DATAGRAMS}], ids=["from a version that led UDP"], indirect=True)
def test_sockets_that_an_earlier_version_led_go_on(world, upgrade, service, form):
    web1, web2, _ = world.webs
    vip = vip_of(service, form)
    upgrade()  # to the version of before
    with (
        connected(world, service, form, Protocol.UDP) as handle,
        socket_of(world.client, vip, Protocol.UDP) as unconnected,
    ):
        with counted(world, connected=1, balanced=0):
            assert asked_by_datagram(unconnected, vip) == ("web1", (vip, UDP_PORT))
        service.endpoints([web1, web2])
        until(lambda: ask(world.client, service.vip(4), UDP_PORT, Protocol.UDP).server == "web2", "a second endpoint")
        upgrade()
        assert pins(world)
        with counted(world, balanced=0):
            for _ in range(10):
                assert handle.getpeername()[:2] == (vip, UDP_PORT)
                handle.send(b"?")
                assert handle.recvfrom(1000)[1][:2] == (vip, UDP_PORT)
                assert asked(handle, Protocol.UDP).server == "web1"
                assert asked_by_datagram(unconnected, vip) == ("web1", (vip, UDP_PORT))
        with counted(world, connected=0, balanced=1), socket_of(world.client, vip, Protocol.UDP) as fresh:
            assert asked_by_datagram(fresh, vip)[1] == (vip, UDP_PORT)
        service.endpoints([*terminating(web1), web2])
        service.endpoints([web2])
        until(lambda: aborted(handle), "the connected socket to end, as that version had it")
        until(lambda: asked_by_datagram(unconnected, vip) == ("web2", (vip, UDP_PORT)), "the other one to move")
