"""What compiles: BCC with the LLVM that it is linked with, and the kernel headers. Which ones, told cheaply.

A file of compiled programs says which tools made it. Where other tools are at hand, the programs are compiled anew;
where there is no compiler at all, nothing else could be compiled, and the file is taken as it is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from kproxy_ebpf.datapath.generations.object_file import UnfitError
from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux.headers import find_headers

HEADERS = "kernel headers"

_LIBRARIES = re.compile(r"/(libbcc|libLLVM|libclang)[^/]*$")
_HEAD_BYTES = 4096  # of a library: with its build id
# They name the version, the configuration and the compiler that the headers are of.
_HEADERS_TELL = ("uapi/linux/version.h", "utsrelease.h", "autoconf.h", "compile.h")


def tools_of_this_process() -> dict[str, str]:
    """Fingerprints of what compiles in this process, which has imported bcc: by path, and that of the headers."""
    mapped = {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    files = [Path(path) for path in sorted(mapped) if _LIBRARIES.search(path)]
    return {str(path): fingerprint(path) for path in (*files, _bcc() / "version.py")} | _headers()


def require_same_tools(tools: Mapping[str, str]) -> None:
    """Raises UnfitError where this node's compiler or headers are others than `tools`."""
    if not has_bcc():
        return
    here = {path: fingerprint(Path(path)) for path in tools if path != HEADERS} | _headers()
    for path, found in here.items():
        if tools.get(path) != found:
            raise UnfitError(f"was compiled with another {Path(path).name}")


def has_bcc() -> bool:
    """Whether there is a compiler, without the 200 MB of importing it."""
    return importlib.util.find_spec("bcc") is not None


def fingerprint(path: Path) -> str:
    """Of a file's size and first 4096 bytes; empty where there is none."""
    try:
        with path.open("rb") as file:
            return _digest([str(path.stat().st_size).encode(), file.read(_HEAD_BYTES)])
    except OSError:
        return ""


def headers_fingerprint(folders: Iterable[Path]) -> str:
    """Of the headers in `folders`, which are merged into one tree or are parts of one."""
    generated = [folder / "include/generated" / name for folder in folders for name in _HEADERS_TELL]
    return _digest(file.read_bytes() for file in sorted(generated, key=lambda file: file.name) if file.is_file())


def _headers() -> dict[str, str]:
    try:
        return {HEADERS: headers_fingerprint(find_headers())}
    except NodeError:
        return {}


def _bcc() -> Path:
    spec = importlib.util.find_spec("bcc")
    return Path(spec.origin).parent if spec is not None and spec.origin else Path()


def _digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]
