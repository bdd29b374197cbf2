"""The socket programs on the cgroup v2 tree, attached by BPF links beside whatever else is attached there.

The links are pinned as links/cgroup-<program>, so they outlive the daemon. Once attached the programs stay until
`cleanup`, in every mode: translated sockets show their VIP through them. settings.switches says whether they translate
new connections.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Self

from kproxy_ebpf.contract.programs import SOCKET_PROGRAMS
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux import libbpf
from kproxy_ebpf.linux.bpf import Descriptor, Link, Program

PREFIX = "cgroup-"
_SO_NETNS_COOKIE = 71
_REVERSING_FIRST = ("getpeername", "connect")
"""The VIP must be shown before anything is translated that would show another address."""


def cgroup2_mount(mounts: Path = Path("/proc/self/mounts")) -> Path | None:
    """The mount point of cgroup v2, None where it is not mounted. Hybrid layouts put it in a subfolder.

    A container may also have a mount of its own part of the tree: the whole tree, whose root has no cgroup.type, wins.
    """
    found = []
    for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, folder, kind, *_ = line.split()
        if kind == "cgroup2":
            found.append(Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), folder)))
    return min(found, key=lambda folder: (folder / "cgroup.type").exists(), default=None)


def find_cgroup(wanted: Path | None = None) -> Path:
    """The cgroup whose sockets are served: `wanted`, or the whole tree. Raises NodeError."""
    folder = wanted or cgroup2_mount()
    if folder is None:
        raise NodeError("cgroup v2 is not mounted")
    if not (folder / "cgroup.procs").exists():
        raise NodeError(f"{folder} is no cgroup v2")
    return folder


def netns_cookie() -> int:
    """The cookie of this process's network namespace. Raises NodeError before Linux 5.14."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            (cookie,) = struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))
    except OSError as error:
        raise NodeError(f"no SO_NETNS_COOKIE (Linux 5.14): {error.strerror}") from None
    return int(cookie)


class CgroupLink(Link):
    """A program's place on a cgroup."""

    @property
    def program_and_cgroup(self) -> tuple[int, int]:
        """The ids of both. The cgroup's is 0 once the cgroup is gone, or the link was detached by force."""
        raw = self._fill(libbpf.CgroupLinkInfoStruct())
        return raw.program_id, raw.cgroup_id


class SocketHooks:
    """Attaches one generation's socket programs to `cgroup`."""

    def __init__(self, generation: Generation, cgroup: Path) -> None:
        self._links = generation.root / "links"
        self.cgroup = cgroup
        hooks = [(name, family, hook) for family, names in SOCKET_PROGRAMS.items() for name, hook in names.items()]
        hooks.sort(key=lambda each: _REVERSING_FIRST.index(each[0].partition("_")[0]))
        self._hooks = [(generation.program(name, family), hook) for name, family, hook in hooks]

    def attach(self) -> None:
        """Attach every program, or bring those attached up to date: no call meets neither. Raises OSError."""
        with Descriptor(os.open(self.cgroup, os.O_RDONLY | os.O_DIRECTORY), str(self.cgroup)) as cgroup:
            cgroup_id = os.fstat(cgroup.fd).st_ino
            for program, hook in self._hooks:
                pin = self._links / f"{PREFIX}{program.name}"
                if pin.exists() and _update(pin, program, cgroup_id):
                    continue
                with CgroupLink.create(program, cgroup.fd, hook) as link:
                    link.pin(pin)

    def close(self) -> None:
        for program, _ in self._hooks:
            program.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _update(pin: Path, program: Program, cgroup_id: int) -> bool:
    """Let a pinned link run the present program. False, and the pin removed, where it isn't at this cgroup."""
    with CgroupLink.open(pin) as link:
        program_id, at = link.program_and_cgroup
        if at != cgroup_id:
            pin.unlink()
            return False
        if program_id != program.id:
            link.update(program)
        return True


def is_attached(links: Path) -> bool:
    """True if socket programs of ours are attached, whether or not a daemon runs."""
    with suppress(FileNotFoundError):
        return any(pin.name.startswith(PREFIX) for pin in links.iterdir())
    return False
