"""An application's sockets: IPv4, IPv6, and IPv4 on IPv6 sockets (mapped addresses)."""

from __future__ import annotations

import json
import struct
from contextlib import contextmanager

from worlds import TCP_PORT, UDP_PORT

from kproxy_ebpf.contract.maps import entries
from kproxy_ebpf.datapath.generations.generation import current
from kproxy_ebpf.lab.manifests import EndpointSpec
from kproxy_ebpf.lab.traffic import KINDS, ask, family_of, read_answer
from kproxy_ebpf.model.services import Protocol

FORMS = {"ipv4": 4, "ipv6": 6, "mapped": 4}
PORTS = {Protocol.TCP: TCP_PORT, Protocol.UDP: UDP_PORT}


def vip_of(service, form):
    """A Service's address as an application of this form writes it."""
    return written(service.vip(FORMS[form]), form)


def written(address, form):
    return f"::ffff:{address}" if form == "mapped" else address


def socket_of(place, address, protocol=Protocol.TCP):
    handle = place.socket(family_of(address), KINDS[protocol])
    handle.settimeout(2)
    return handle


@contextmanager
def connected(world, service, form, protocol=Protocol.TCP):
    """A socket of the client pod that has been answered through the VIP."""
    vip = vip_of(service, form)
    with socket_of(world.client, vip, protocol) as handle:
        handle.connect((vip, PORTS[protocol]))
        asked(handle, protocol)
        yield handle


def asked(handle, protocol=Protocol.TCP):
    """Who answers on a fresh connected socket."""
    if protocol is Protocol.UDP:
        handle.send(b"?")
    return read_answer(handle, 0)


def asked_by_datagram(handle, address, port=UDP_PORT):
    """Who answers a datagram of an unconnected socket, and from where that comes as the application sees it."""
    handle.sendto(b"?", (address, port))
    data, source = handle.recvfrom(1000)
    return json.loads(data.splitlines()[0])["server"], source[:2]


def server_of(world, service, form, protocol=Protocol.TCP):
    """Who answers a new connection."""
    return ask(world.client, vip_of(service, form), PORTS[protocol], protocol).server


def mode_of(world):
    """The mode that node1's daemon has put into force."""
    return world.daemon.json("status")["daemon"]["settings"]["mode"]


@contextmanager
def stored(world, handle, form):
    """What a socket has in the map `connections`, to be changed in the block."""
    layout, key = entries(FORMS[form])["connections"][1], struct.pack("=i", handle.fileno())
    with current(world.daemon.bpffs).map("connections", FORMS[form]) as storage:
        value = layout.from_buffer_copy(storage.lookup(key))
        yield value
        storage.update(key, bytes(value))


@contextmanager
def counted(world, **expected):
    """Exactly so many verdicts of these kinds are added in the block by node1's programs."""
    before = _verdicts(world)
    yield
    after = _verdicts(world)
    assert {name: after[name] - before[name] for name in expected} == expected


def _verdicts(world):
    return {name: count["packets"] for name, count in world.daemon.json("status")["verdicts"].items()}


def aborted(handle):
    """True if the application has been told, though it did nothing but wait."""
    handle.settimeout(0.05)
    try:
        handle.recv(100)
    except ConnectionAbortedError:
        return True
    except TimeoutError:
        pass
    finally:
        handle.settimeout(2)
    return False


def terminating(pod):
    return [EndpointSpec(address, ready=False, serving=True, terminating=True) for address in (pod.ip4, pod.ip6)]
