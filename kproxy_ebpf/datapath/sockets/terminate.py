"""Terminates sockets that were translated at connect() and whose backend is gone.

None of their packets passes a program that could reset the connection. The rules are those for flows: TCP ends with the
backend's pod, UDP as soon as the backend has left its Service. (Only programs of earlier versions led UDP sockets.)
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kproxy_ebpf.contract.layouts import BackendState, ListedSocket
from kproxy_ebpf.contract.programs import LISTING_PROGRAMS
from kproxy_ebpf.contract.scalars import U32
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.packing import codec, packer
from kproxy_ebpf.linux import libbpf
from kproxy_ebpf.linux.bpf import Descriptor
from kproxy_ebpf.linux.netns import NamespaceGoneError, entered, other_namespaces
from kproxy_ebpf.linux.sock_diag import TARGETS_MAX, FoundSocket, SockDiag, Target
from kproxy_ebpf.model.service_tables import Backend

_LISTED = packer(ListedSocket, "cookie", "backend_id", "epoch")
_READ_BYTES = 1 << 16
_TRACE_ITER = 28  # enum bpf_attach_type
_ENDING = {
    socket.IPPROTO_TCP: {BackendState.GONE},
    socket.IPPROTO_UDP: {BackendState.GONE, BackendState.LEFT},
}
_SOCKET_FAMILIES = {4: (socket.AF_INET, socket.AF_INET6), 6: (socket.AF_INET6,)}
"""By a backend's family, the families of the sockets that talk to it: IPv6 sockets reach IPv4 by mapped addresses."""


class Lost(NamedTuple):
    """A backend that is gone, and its address and port; None where another backend has its id by now."""

    state: BackendState
    target: Target | None


def is_ended(found: FoundSocket, lost: Lost | None, ending: Collection[BackendState]) -> bool:
    """True if a socket ends with its backend. Its peer must be the backend's address: where tables could not be
    migrated, the id that the socket bears is of another table.
    """
    return lost is not None and lost.state in ending and lost.target in (None, found.peer)


class SocketTerminator:
    """Terminates sockets of one address family's backends. Keeps the maps open; `close` when done.

    Raises OSError where the kernel can't list the sockets.
    """

    def __init__(self, generation: Generation, family: int) -> None:
        self._family = family
        self._backends = generation.map("backends", family)
        self._led = generation.map("led", family)
        self._listings = [_iterator(generation, name, family) for name in LISTING_PROGRAMS]

    def terminate(self, backend_ids: Collection[int] | None = None) -> int:
        """Terminate the sockets of these backends, or of all, as far as the backends are gone; return how many it were.

        Blocks in a thread for some walks through the node's tables of sockets, for each network namespace (about a
        millisecond on a quiet node); not at all if no socket has been led to these backends. Namespaces and sockets
        that end meanwhile are no error. Raises OSError.
        """
        if backend_ids is not None:
            backend_ids = {backend_id for backend_id in backend_ids if self._was_led_to(backend_id)}
            if not backend_ids:
                return 0
        targets = self._targets(backend_ids) if backend_ids else []
        namespaces = other_namespaces()
        if backend_ids and not namespaces:
            raise FileNotFoundError(errno.ENOENT, "no pod's network namespace is to be seen, such as in /run/netns")
        return sum(self._terminate_in(namespace, backend_ids, targets) for namespace in namespaces)

    def learn(self) -> None:
        """Note in `led` to which of the present backends sockets have been led: programs of a version without that map
        may have led them.

        Blocks like `terminate`. Raises OSError.
        """
        led: set[tuple[int, int]] = set()
        for namespace in other_namespaces():
            with suppress(NamespaceGoneError):  # its pod has ended
                led |= {(backend_id, epoch) for _, backend_id, epoch in self._listed(namespace)}
        for backend_id, epoch in led:
            backend = self._backend(backend_id)
            if backend is not None and backend.epoch == epoch:
                self._led.update(U32.pack(backend_id), _led_in(epoch))

    def close(self) -> None:
        for descriptor in (self._backends, self._led, *self._listings):
            descriptor.close()

    def _was_led_to(self, backend_id: int) -> bool:
        """True if a socket has been led to this backend, even if that socket has ended since."""
        backend = self._backend(backend_id)
        return backend is not None and self._led.lookup(U32.pack(backend_id)) == _led_in(backend.epoch)

    def _listed(self, namespace: Path) -> Iterator[tuple[int, int, int]]:
        """(cookie, backend id, epoch) of each socket in `connections` that lives in a network namespace."""
        for listing in self._listings:
            with entered(namespace):
                reading = Descriptor(libbpf.call("bpf_iter_create", "list of sockets", listing.fd), "list of sockets")
            with reading:
                while data := os.read(reading.fd, _READ_BYTES // _LISTED.size * _LISTED.size):
                    yield from _LISTED.iter_unpack(data)

    def _lost(self, backend_id: int, epoch: int, *, only_present: bool) -> Lost | None:
        """The state of a socket's backend if it is lost; None while it serves.

        If the epoch is another, the id has been given away. So that backend has left or is gone, and it counts as left;
        with `only_present` it is not asked for: None.
        """
        backend = self._backend(backend_id)
        if backend is None or backend.epoch != epoch:
            return None if only_present else Lost(BackendState.LEFT, None)
        if backend.state not in (BackendState.LEFT, BackendState.GONE):
            return None
        return Lost(BackendState(backend.state), (backend.address, backend.port))

    def _backend(self, backend_id: int) -> Backend | None:
        row = self._backends.lookup(U32.pack(backend_id))
        return codec(self._family).unpack_backend(row) if row else None

    def _targets(self, backend_ids: Collection[int]) -> list[Target]:
        """The backends' addresses and ports, as a filter for sockets; of too many backends none: no filter."""
        if len(backend_ids) > TARGETS_MAX:
            return []
        backends = filter(None, map(self._backend, backend_ids))
        return [(backend.address, backend.port) for backend in backends]

    def _terminate_in(self, namespace: Path, backend_ids: Collection[int] | None, targets: Sequence[Target]) -> int:
        try:
            lost = self._to_terminate(namespace, backend_ids)
            if not lost:
                return 0
            with entered(namespace):
                diag = SockDiag()
        except NamespaceGoneError:  # its pod has ended
            return 0
        with diag:
            return sum(
                _destroy(diag, found)
                for family in _SOCKET_FAMILIES[self._family]
                for protocol, ending in _ENDING.items()
                for found in list(diag.find(family, protocol, targets))
                if is_ended(found, lost.get(found.cookie), ending)
            )

    def _to_terminate(self, namespace: Path, backend_ids: Collection[int] | None) -> dict[int, Lost]:
        """By cookie, the lost backend of each socket that may have to end."""
        lost = {
            cookie: self._lost(backend_id, epoch, only_present=backend_ids is not None)
            for cookie, backend_id, epoch in self._listed(namespace)
            if backend_ids is None or backend_id in backend_ids
        }
        return {cookie: each for cookie, each in lost.items() if each is not None}


def _led_in(epoch: int) -> bytes:
    """The value in `led` for a backend to which sockets were led in this epoch."""
    return U32.pack((epoch + 1) & 0xFFFFFFFF)


def _iterator(generation: Generation, name: str, family: int) -> Descriptor:
    """A link from which any number of walks through sockets can be made."""
    with generation.program(name, family) as program:
        return Descriptor(libbpf.call("bpf_link_create", name, program.fd, 0, _TRACE_ITER, None), name)


def _destroy(diag: SockDiag, found: FoundSocket) -> bool:
    try:
        diag.destroy(found)
    except OSError as error:
        if error.errno != errno.ENOENT:  # it has ended by itself
            raise
        return False
    return True
