"""What this node offers and lacks, for `check`: each line says what follows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kproxy_ebpf.cni.binary import is_installed
from kproxy_ebpf.cni.folder import standing
from kproxy_ebpf.datapath.generations import bpffs
from kproxy_ebpf.datapath.generations.build import shipped_folder
from kproxy_ebpf.datapath.generations.kept import default_folder, digest_of, find
from kproxy_ebpf.datapath.generations.sources import Constants, KernelFeatures, read_source, source_folder
from kproxy_ebpf.datapath.sockets.cgroup import cgroup2_mount, netns_cookie
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux import libbpf
from kproxy_ebpf.linux.headers import find_headers
from kproxy_ebpf.linux.kernel import OLDEST, REDIRECT, TCX, kernel_version, lists_sockets
from kproxy_ebpf.linux.xfrm import has_policies

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


@dataclass(frozen=True, slots=True)
class Check:
    """One fact. `required`: nothing works without it. `consequence` says what follows where it is not `ok`."""

    name: str
    ok: bool
    detail: str
    consequence: str = ""
    required: bool = True


def check_node(folder: Path = bpffs.DEFAULT, kept: Path | None = None) -> list[Check]:
    """All facts about this node, most basic first.

    `folder` is where bpffs is, or is to be mounted; `kept` where compiled programs are.
    """
    programs = _programs(kept or default_folder())
    checks: list[Callable[[], Check]] = [
        _privileges,
        _kernel,
        lambda: _bpffs(folder),
        _libbpf,
        lambda: programs,
        lambda: _bcc(required=not programs.ok),
        lambda: _headers(required=not programs.ok),
        _sources,
        _tcx,
        _redirect,
        _ipsec,
        _cgroup,
        _netns_cookie,
        _socket_lists,
    ]
    return [check() for check in checks]


def cni_chain(conf_dir: Path, bin_dir: Path) -> Check:
    """Whether a new pod's link has its programs before the pod starts."""
    found, consequence = standing(conf_dir), "a new pod's link gets its programs some milliseconds after it is made"
    detail = str(found)
    if found.is_in and not is_installed(bin_dir):
        detail, consequence = f"{detail}, but not in {bin_dir}", "no pod of this node can start: install-cni"
    return Check("cni", found.is_in and is_installed(bin_dir), detail, consequence, required=False)


def _privileges() -> Check:
    if os.geteuid() != 0:
        return Check("root", ok=False, detail=f"user {os.geteuid()}", consequence="run as root")
    effective = int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    detail = f"lacks {', '.join(missing)}" if missing else "root with its capabilities"
    return Check("root", not missing, detail, "programs can't be loaded or attached: run privileged")


def _kernel() -> Check:
    ok = kernel_version() >= OLDEST
    return Check("kernel", ok, os.uname().release, f"Linux {OLDEST[0]}.{OLDEST[1]} or later is needed")


def _bpffs(folder: Path) -> Check:
    mounted = bpffs.is_bpffs(folder)
    detail = f"at {folder}" if mounted else f"not mounted at {folder}"
    return Check("bpffs", mounted, detail, "run mounts it there, if it may", required=False)


def _libbpf() -> Check:
    try:
        cpus = libbpf.possible_cpus()
    except (NodeError, OSError) as error:
        return Check("libbpf", ok=False, detail=str(error), consequence="apt install libbpf1")
    return Check("libbpf", ok=True, detail=f"libbpf.so.1, {cpus} possible CPUs")


def _programs(kept: Path) -> Check:
    """Whether the next start finds compiled programs, for tables of the default sizes or any other."""
    told: list[str] = []
    consequence = "the next start compiles them"
    try:
        digest = digest_of(read_source(source_folder(), Constants()).texts(KernelFeatures.here()))
        for folder in (kept, shipped_folder()):
            if find([folder], digest, told.append):
                return Check("programs", ok=True, detail=f"compiled, in {folder}")
    except NodeError as error:
        told.append(str(error))
    detail = "; ".join(told) or f"not compiled in {kept}"
    return Check("programs", ok=False, detail=detail, consequence=consequence, required=False)


def _bcc(required: bool) -> Check:
    """In a child: bcc is too big to be imported here."""
    command = [sys.executable, "-c", "import bcc; print(bcc.__version__)"]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if child.returncode == 0:
        return Check("bcc", ok=True, detail=child.stdout.strip(), required=required)
    last = (child.stderr.strip().splitlines() or ["it could not be imported"])[-1]
    consequence = "programs can't be compiled: apt install python3-bpfcc"
    return Check("bcc", ok=False, detail=last, consequence=consequence, required=required)


def _headers(required: bool) -> Check:
    try:
        found = find_headers()
    except NodeError as error:
        consequence = "programs can't be compiled"
        return Check("headers", ok=False, detail=str(error), consequence=consequence, required=required)
    return Check("headers", ok=True, detail=" + ".join(map(str, found)), required=required)


def _sources() -> Check:
    try:
        folder = source_folder()
    except NodeError as error:
        return Check("sources", ok=False, detail=str(error), consequence="programs can't be compiled")
    return Check("sources", ok=True, detail=str(folder))


def _tcx() -> Check:
    ok = kernel_version() >= TCX
    detail = "the kernel has it" if ok else f"since Linux {TCX[0]}.{TCX[1]}"
    return Check("tcx", ok, detail, "clsact filters are used instead", required=False)


def _redirect() -> Check:
    ok = kernel_version() >= REDIRECT
    detail = "the kernel has it" if ok else f"since Linux {REDIRECT[0]}.{REDIRECT[1]}"
    return Check("redirect", ok, detail, "forwarding redirect is served as stack", required=False)


def _ipsec() -> Check:
    consequence = "with redirect, packets to other nodes go through the host's stack"
    try:
        found = has_policies()
    except OSError as error:
        return Check("ipsec", ok=False, detail=str(error), consequence=consequence, required=False)
    return Check("ipsec", not found, "the host has policies" if found else "no policies", consequence, required=False)


def _cgroup() -> Check:
    mount = cgroup2_mount()
    detail = f"at {mount}" if mount else "not mounted"
    return Check("cgroup2", mount is not None, detail, "no socket fast path: tc does the whole job", required=False)


def _netns_cookie() -> Check:
    consequence = "no socket fast path: host sockets can't be told apart"
    try:
        return Check("netns cookie", True, str(netns_cookie()), consequence, required=False)
    except NodeError as error:
        return Check("netns cookie", False, str(error), consequence, required=False)


def _socket_lists() -> Check:
    ok = lists_sockets()
    detail = "the kernel has them" if ok else "since Linux 5.12, with BTF"
    consequence = "open sockets of the fast path outlast their backend until the application gives up"
    return Check("socket lists", ok, detail, consequence, required=False)
