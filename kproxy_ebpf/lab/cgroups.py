"""A cgroup for each node, as if the node were a machine: its socket programs must not meet other nodes' sockets.

The kernel asks for the cgroup of the thread that makes a socket. So the cgroups are threaded ones, below that of this
process, and each has a thread in it that makes sockets on request (a request costs 20 µs; moving a thread for each
socket would cost milliseconds).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from kproxy_ebpf.datapath.sockets.cgroup import find_cgroup
from kproxy_ebpf.lab.exclusive import exclusive
from kproxy_ebpf.lab.wait import until

Result = TypeVar("Result")

ROOT = "kproxy-ebpf-lab"
_JOIN_AND_RUN = 'echo 0 >"$0" && exec "$@"'


def own_folder() -> Path:
    """The folder of this process's cgroup. Raises NodeError where cgroup v2 is not mounted."""
    (path,) = (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return find_cgroup() / path.lstrip("/")


class NodeCgroup:
    """The cgroup `folder`, made here; its parents too, where they are missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        root = folder.parent.parent
        with exclusive(root.parent):
            for each in (root, folder.parent, folder):
                with suppress(FileExistsError):
                    each.mkdir()
                    (each / "cgroup.type").write_text("threaded")
        self._worker = ThreadPoolExecutor(1, f"cgroup {folder.name}", self._join)

    def _join(self) -> None:
        (self.folder / "cgroup.threads").write_text(str(threading.get_native_id()))

    def call(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises, done by the thread in this cgroup."""
        return self._worker.submit(work).result()

    def command(self, words: Sequence[str]) -> list[str]:
        """The argument vector that runs a command in this cgroup; its process stays the same."""
        return ["/bin/sh", "-c", _JOIN_AND_RUN, str(self.folder / "cgroup.procs"), *words]

    def close(self) -> None:
        """End the thread. The folder goes with its lab."""
        self._worker.shutdown()


def remove(folder: Path) -> None:
    """Remove the cgroups of a lab, whose processes and threads have ended; ROOT with the last of them."""
    for each in (*folder.glob("*/"), folder):
        until(partial(_removed, each), f"cgroup {each} to be empty", seconds=10)
    root = folder.parent
    with exclusive(root.parent), suppress(OSError):
        root.rmdir()


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # a process that was killed is still on its way out
        return False
    return True
