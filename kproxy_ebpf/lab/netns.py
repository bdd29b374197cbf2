"""Named network namespaces: made, entered, configured and deleted.

A `Namespace` is one of /run/netns, so `ip -n`, `nsenter --net=` and people can use it too. What runs inside is
started with nsenter (`ip netns exec` would hide bpffs and the cgroup tree) and is ended with the namespace.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from kproxy_ebpf.lab.cgroups import NodeCgroup
from kproxy_ebpf.linux.netns import entered

RUN_NETNS = Path("/run/netns")
SIOCETHTOOL = 0x8946
# linux/ethtool.h: ETHTOOL_STXCSUM, _STSO, _SGSO, _SGRO. Off in this order, on in the reverse: TSO needs TX checksums.
OFFLOADS = {"gro": 0x2C, "gso": 0x24, "tso": 0x1F, "tx-checksum": 0x17}


def run(command: Sequence[str], *, text: str = "") -> str:
    """Run a command with `text` on its standard input; return what it printed. Raises RuntimeError with its words."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}\n{text}")
    return done.stdout


def ip_batch(lines: Iterable[str], *, namespace: str = "") -> None:
    """Run many `ip` commands in one process. The first that fails raises RuntimeError."""
    where = ["-n", namespace] if namespace else []
    run(["ip", *where, "-batch", "-"], text="\n".join(lines) + "\n")


def delete(names: Iterable[str]) -> None:
    """Kill what still runs in the namespaces, then delete them. Those that are gone already are passed over."""
    for name in names:
        if not (RUN_NETNS / name).exists():
            continue
        for pid in run(["ip", "netns", "pids", name]).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        run(["ip", "netns", "del", name])


class Namespace:
    """A network namespace and the processes that were started in it. `netns` is its name in /run/netns.

    What is started and which sockets are made here belong to `cgroup`, or without one to this process's own.
    """

    def __init__(self, netns: str, name: str, sysctls: Mapping[str, str], cgroup: NodeCgroup | None = None) -> None:
        """Make it; `sysctls` are set before any link but loopback exists."""
        self.netns = netns
        self.name = name
        self.path = RUN_NETNS / netns
        self.cgroup = cgroup
        self._processes: list[subprocess.Popen[str]] = []
        ip_batch([f"netns add {netns}"])
        self.sysctl(sysctls)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in this namespace for the length of the block (never await inside it)."""
        with entered(self.path):
            yield

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that lives in this namespace, usable from any thread of this process."""

        def make() -> socket.socket:
            with self.inside():
                return socket.socket(family, kind, protocol)

        return self.cgroup.call(make) if self.cgroup else make()

    def ip(self, *lines: str) -> None:
        """Run `ip` commands inside, in one process."""
        ip_batch(lines, namespace=self.netns)

    def sysctl(self, values: Mapping[str, str]) -> None:
        """Set sysctls, named as in /proc/sys/net with slashes (``ipv4/ip_forward``)."""
        with self.inside():
            for key, value in values.items():
                Path("/proc/sys/net", key).write_text(value)

    def read_sysctl(self, key: str) -> str:
        with self.inside():
            return Path("/proc/sys/net", key).read_text().strip()

    def ifindex(self, link: str) -> int:
        with self.inside():
            return socket.if_nametoindex(link)

    def offloads(self, link: str, *, on: bool) -> None:
        """Switch TX checksums, TSO, GSO and GRO of a link: off, every packet is MTU-sized with a full checksum."""
        codes = reversed(OFFLOADS.values()) if on else OFFLOADS.values()
        with self.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            for code in codes:
                value = ctypes.create_string_buffer(struct.pack("=II", code, int(on)), 8)
                request = struct.pack("=16sQ", link.encode(), ctypes.addressof(value))
                fcntl.ioctl(handle, SIOCETHTOOL, request.ljust(40, b"\0"))

    def command(self, command: Sequence[str | Path]) -> list[str]:
        """The argument vector that runs `command` inside; a leading "python" is the interpreter in use."""
        words = [str(word) for word in command]
        if words[0] == "python":
            words[0] = sys.executable
        if self.cgroup:
            words = self.cgroup.command(words)
        return ["nsenter", f"--net={self.path}", "--", *words]

    def run(
        self, command: Sequence[str | Path], *, check: bool = True, timeout: float = 30, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end, output captured as text. Raises CalledProcessError, TimeoutExpired."""
        arguments = self.command(command)
        return subprocess.run(arguments, check=check, timeout=timeout, capture_output=True, text=True, **options)

    def popen(
        self, command: Sequence[str | Path], *, stdout: IO[Any] | int | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command inside (its pid is the process's: others only exec it). `end` or `close` reaps it."""
        process = subprocess.Popen(self.command(command), stdout=stdout, text=True, **options)
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[str], *, grace_seconds: float = 5) -> int:
        """SIGTERM, then SIGKILL after the grace; reap, and return the exit code."""
        process.terminate()
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process in self._processes:
            self._processes.remove(process)
        return process.returncode

    def close(self) -> None:
        """End every process that was started here. The namespace itself goes with its lab."""
        for process in list(self._processes):
            self.end(process)
