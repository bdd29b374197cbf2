"""The C sources as the one text that BCC compiles, and what specialises it: the running kernel's features.

BCC rewrites map methods in the main text only, so quoted includes are spliced into it; `#line` keeps compiler errors
pointing at the real file.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux.kernel import kernel_version, lists_sockets, redirects, tells_mptcp

MAIN = "main.c"
# Exact to a few milliseconds and 20 ns cheaper; the programs count in seconds.
_COARSE_CLOCK = (5, 11)
_SET_RETVAL = (5, 18)  # without it a socket's connect() can only be refused with EPERM, which nobody expects
_GIVEN_LATER = 1  # a size that is put in when the map is made: nodes with other sizes run the same programs
_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


@dataclass(frozen=True, slots=True)
class Constants:
    """Sizes of the tables, per family; fixed when the tables are made. `events_bytes` is a power of two."""

    frontends_max: int = 131072
    slots_max: int = 1048576
    backends_max: int = 262144
    flows_max: int = 262144
    fragments_max: int = 32768
    affinity_max: int = 65536
    source_ranges_max: int = 65536
    pod_links_max: int = 4096
    pods_max: int = 8192
    host_flows_max: int = 65536
    cluster_max: int = 256
    uplinks_max: int = 64
    events_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class KernelFeatures:
    """What the programs can use of a kernel. The defaults are those of Linux 5.10."""

    coarse_clock: bool = False
    checks_mtu: bool = False
    refuses_at_connect: bool = False
    tells_mptcp: bool = False
    lists_sockets: bool = False

    @classmethod
    def here(cls) -> KernelFeatures:
        """Those of the running kernel."""
        version = kernel_version()
        return cls(version >= _COARSE_CLOCK, redirects(), version >= _SET_RETVAL, tells_mptcp(), lists_sockets())


def kernels() -> list[KernelFeatures]:
    """Every kernel that there is, as far as programs differ: what an image is given programs for."""
    described = [KernelFeatures(coarse_clock=True, checks_mtu=True, lists_sockets=True)]
    described.append(replace(described[-1], refuses_at_connect=True))
    described.append(replace(described[-1], tells_mptcp=True))
    # Without BTF, sockets can't be listed; MPTCP is told with BTF only, and left out of many kernels.
    plain = [KernelFeatures(), KernelFeatures(coarse_clock=True)]
    return plain + [replace(kernel, tells_mptcp=False, lists_sockets=False) for kernel in described[:2]] + described


@dataclass(frozen=True, slots=True)
class SourceText:
    """The spliced text and the node's constants; `digest` names the generation that is made of them."""

    text: str
    constants: Constants

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{astuple(self.constants)}\n{self.text}".encode()).hexdigest()[:16]

    def for_family(self, family: int, kernel: KernelFeatures) -> str:
        """The text that is compiled for one address family (4 or 6)."""
        defines = {
            "ADDRESS_WORDS": {4: 1, 6: 4}[family],
            "IP_FAMILY": family,
            "CHECK_MTU(...)": "bpf_check_mtu(__VA_ARGS__)" if kernel.checks_mtu else "-1",
            "COARSE_CLOCK": "bpf_ktime_get_coarse_ns" if kernel.coarse_clock else "bpf_ktime_get_ns",
            "REFUSES_AT_CONNECT": int(kernel.refuses_at_connect),
            "MPTCP_IS_TOLD": int(kernel.tells_mptcp),
            "LISTS_SOCKETS": int(kernel.lists_sockets),
            **dict.fromkeys(map(str.upper, Constants.__dataclass_fields__), _GIVEN_LATER),
            "POD_LINKS_MAX": self.constants.pod_links_max,  # the programs count with it, too
        }
        return "".join(f"#define {name} {value}\n" for name, value in defines.items()) + self.text

    def texts(self, kernel: KernelFeatures) -> dict[int, str]:
        """What is compiled for a kernel, by family."""
        return {family: self.for_family(family, kernel) for family in FAMILIES}


def source_folder() -> Path:
    """Where the C sources are: KPROXY_BPF_SOURCE, beside the package in a checkout, or the installed data.

    Raises NodeError where they are in none of these places.
    """
    candidates = [
        Path(__file__).parents[3] / "bpf_src",
        Path(sys.prefix) / "share/kproxy-ebpf/bpf_src",
        Path("/usr/share/kproxy-ebpf/bpf_src"),
    ]
    if named := os.environ.get("KPROXY_BPF_SOURCE"):
        candidates = [Path(named)]
    for folder in candidates:
        if (folder / MAIN).is_file():
            return folder
    raise NodeError(f"{MAIN} is not in {' or '.join(map(str, candidates))}: set KPROXY_BPF_SOURCE to the C sources")


def read_source(folder: Path, constants: Constants) -> SourceText:
    """The text of `folder`/main.c and what it includes in quotes, each file once; paths are relative to `folder`."""
    return SourceText("".join(_splice(folder, MAIN, set())), constants)


def _splice(folder: Path, name: str, seen: set[str]) -> Iterator[str]:
    seen.add(name)
    yield f'#line 1 "{folder.name}/{name}"\n'
    for number, line in enumerate((folder / name).read_text(encoding="utf-8").splitlines(), start=1):
        match = _INCLUDE.match(line)
        if match is None:
            yield f"{line}\n"
        elif match[1] not in seen:
            yield from _splice(folder, match[1], seen)
            yield f'#line {number + 1} "{folder.name}/{name}"\n'
        else:
            yield "\n"
