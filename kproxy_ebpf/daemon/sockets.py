"""The socket fast path of this node: whether it can be had, and its programs on the cgroup tree."""

from __future__ import annotations

from pathlib import Path

import structlog

from kproxy_ebpf.datapath.cgroup import SocketHooks, find_cgroup, is_attached, netns_cookie
from kproxy_ebpf.datapath.generation import Generation
from kproxy_ebpf.errors import NodeError

log = structlog.get_logger(__name__)


class Sockets:
    """`problem` says why this node has no socket fast path, None where it has. `cgroup`: whose sockets, else all."""

    def __init__(self, generation: Generation, cgroup: Path | None) -> None:
        self.problem: str | None = None
        self._links = generation.root / "links"
        self._hooks: SocketHooks | None = None
        self._is_attached = False
        try:
            self.host_cookie = netns_cookie()
            self._hooks = SocketHooks(generation, find_cgroup(cgroup))
        except (NodeError, OSError) as error:
            self._lacking(error)

    def attach(self) -> None:
        """Bring the programs to the cgroup, or up to date. What goes wrong is in `problem`, as long as it does."""
        if self._hooks is None:
            return
        try:
            self._hooks.attach()
        except OSError as error:
            self._lacking(error)
            return
        self.problem = None
        if not self._is_attached:
            self._is_attached = True
            log.info("socket programs attached", cgroup=str(self._hooks.cgroup))

    @property
    def is_attached(self) -> bool:
        """Whether programs are attached, be it another generation's."""
        return is_attached(self._links)

    def close(self) -> None:
        if self._hooks is not None:
            self._hooks.close()

    def _lacking(self, error: Exception) -> None:
        sentence = f"no socket fast path, tc does the whole job: {error}"
        if sentence != self.problem:
            log.warning(sentence)
        self.problem = sentence
