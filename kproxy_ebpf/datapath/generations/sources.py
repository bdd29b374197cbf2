"""The C sources as the one text that BCC compiles, and the constants that specialise it.

BCC rewrites map methods in the main text only, so quoted includes are spliced into it; `#line` keeps compiler errors
pointing at the real file.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux.kernel import kernel_version, lists_sockets, redirects, tells_mptcp

MAIN = "main.c"
# Exact to a few milliseconds and 20 ns cheaper; the programs count in seconds.
_COARSE_CLOCK = (5, 11)
_SET_RETVAL = (5, 18)  # without it a socket's connect() can only be refused with EPERM, which nobody expects
_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


@dataclass(frozen=True, slots=True)
class Constants:
    """Sizes of the tables, per family; fixed when the programs are compiled. `events_bytes` is a power of two."""

    frontends_max: int = 131072
    slots_max: int = 1048576
    backends_max: int = 262144
    flows_max: int = 262144
    affinity_max: int = 65536
    source_ranges_max: int = 65536
    pod_links_max: int = 4096
    pods_max: int = 8192
    host_flows_max: int = 65536
    cluster_max: int = 256
    uplinks_max: int = 64
    events_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceText:
    """The spliced text and its constants; `digest` names what is compiled from them, on any node."""

    text: str
    constants: Constants

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{astuple(self.constants)}\n{self.text}".encode()).hexdigest()[:16]

    def for_family(self, family: int, pin_folder: Path) -> str:
        """The text for one address family (4 or 6), with maps pinned in `pin_folder`."""
        defines = {
            "ADDRESS_WORDS": {4: 1, 6: 4}[family],
            "IP_FAMILY": family,
            "FAMILY_SUFFIX": f'"_v{family}"',
            "PIN_DIR": f'"{pin_folder}"',
            "CHECK_MTU(...)": "bpf_check_mtu(__VA_ARGS__)" if redirects() else "-1",
            "COARSE_CLOCK": "bpf_ktime_get_coarse_ns" if kernel_version() >= _COARSE_CLOCK else "bpf_ktime_get_ns",
            "REFUSES_AT_CONNECT": int(kernel_version() >= _SET_RETVAL),
            "MPTCP_IS_TOLD": int(tells_mptcp()),
            "LISTS_SOCKETS": int(lists_sockets()),
        }
        defines |= {name.upper(): getattr(self.constants, name) for name in Constants.__dataclass_fields__}
        return "".join(f"#define {name} {value}\n" for name, value in defines.items()) + self.text


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
