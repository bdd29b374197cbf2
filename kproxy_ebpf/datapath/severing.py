"""The end of sockets that were translated at connect() and whose backend is gone: no packet of theirs passes a program
that could tell them.

Rules as for flows (SEMANTICS, connections over time): TCP ends with the backend's pod, UDP already where the backend
has left its Service.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from struct import Struct

from kproxy_ebpf.datapath.codec import codec
from kproxy_ebpf.datapath.contract import address_bytes
from kproxy_ebpf.datapath.generation import Generation
from kproxy_ebpf.datapath.netns import entered, other_namespaces
from kproxy_ebpf.datapath.sock_diag import TARGETS_MAX, Found, SockDiag, Target
from kproxy_ebpf.model.tables import BackendState

_U32 = Struct("=I")
_ENDING = {
    socket.IPPROTO_TCP: {BackendState.GONE},
    socket.IPPROTO_UDP: {BackendState.GONE, BackendState.LEFT},
}
_SOCKET_FAMILIES = {4: (socket.AF_INET, socket.AF_INET6), 6: (socket.AF_INET6,)}
"""Which sockets talk to backends of a family: those of IPv6 to IPv4 as well, by mapped addresses."""


class Severing:
    """Ends sockets of one address family's backends. Keeps the maps open; `close` when done."""

    def __init__(self, generation: Generation, family: int) -> None:
        self._family = family
        self._storage = generation.map("connections", family)
        self._backends = generation.map("backends", family)
        size = address_bytes(family)
        self._peer = Struct(f"={2 * size}x4xII4x")  # of struct peer: backend_id, epoch

    def sever(self, backend_ids: Iterable[int] | None = None) -> int:
        """End the sockets of these backends, or of all, as far as they are gone; return how many those were.

        Blocks for milliseconds, in a thread. Namespaces and sockets that end meanwhile are passed over. Raises OSError.
        """
        targets = self._targets(backend_ids) if backend_ids is not None else []
        return sum(self._sever_in(namespace, targets) for namespace in other_namespaces())

    def close(self) -> None:
        self._storage.close()
        self._backends.close()

    def _targets(self, backend_ids: Iterable[int]) -> list[Target]:
        """Where their sockets are connected to; none, which is no filter, where that are too many."""
        rows = [row for number in backend_ids if (row := self._backends.lookup(_U32.pack(number)))]
        backends = [codec(self._family).unpack_backend(row) for row in rows]
        if len(backends) > TARGETS_MAX:
            return []
        return [(backend.address, backend.port) for backend in backends]

    def _sever_in(self, namespace: Path, targets: Sequence[Target]) -> int:
        count = 0
        try:
            with entered(namespace):
                diag = SockDiag()
        except OSError:  # its pod has ended
            return 0
        with diag:
            for family in _SOCKET_FAMILIES[self._family]:
                for protocol in _ENDING:
                    for found in list(diag.find(self._storage, family, protocol, targets)):
                        count += self._is_over(found) and _destroy(diag, found)
        return count

    def _is_over(self, found: Found) -> bool:
        backend_id, epoch = self._peer.unpack(found.value)
        row = self._backends.lookup(_U32.pack(backend_id))
        backend = codec(self._family).unpack_backend(row) if row else None
        # Another epoch: the id has been given away, so that backend has left or is gone, and nobody knows which.
        state = backend.state if backend and backend.epoch == epoch else BackendState.LEFT
        return state in _ENDING[found.protocol]


def _destroy(diag: SockDiag, found: Found) -> bool:
    try:
        diag.destroy(found)
    except OSError as error:
        if error.errno != errno.ENOENT:  # it has ended by itself
            raise
        return False
    return True
