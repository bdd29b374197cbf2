"""Runs the child process that compiles and loads (build_child), with kernel headers at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.datapath.generations.sources import SourceText
from kproxy_ebpf.errors import LoadError, NodeError
from kproxy_ebpf.linux.headers import headers_tree

_LINES_TOLD = 20
_SECONDS = 300


def build(source: SourceText, folder: Path, previous: Path | None) -> None:
    """Compile `source` for both families, load it and pin everything in `folder`, an empty generation.

    Maps of equal shape and layout are taken over from `previous`. Raises LoadError with the compiler's or the
    verifier's last words, NodeError without headers or bcc.
    """
    order = {
        "texts": {family: source.for_family(family, folder / "maps") for family in FAMILIES},
        "folder": str(folder),
        "previous": str(previous) if previous else None,
        "parent": os.getpid(),
    }
    _run_child(json.dumps(order), headers_tree())


def _run_child(order: str, headers: Path) -> None:
    # -P: of the daemon's own version, not of one that happens to be in the working directory.
    environment = os.environ | {"BCC_KERNEL_SOURCE": str(headers)}
    command = [sys.executable, "-P", "-m", "kproxy_ebpf.datapath.generations.build_child"]
    try:
        child = subprocess.run(
            command, input=order, capture_output=True, text=True, env=environment, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise LoadError(f"the programs could not be compiled within {_SECONDS} s") from None
    if child.returncode == 0:
        return
    if "No module named 'bcc'" in child.stderr:
        raise NodeError("the Python module bcc is missing: apt install python3-bpfcc (not the bcc on PyPI)")
    words = "\n".join(_telling(child.stderr)[-_LINES_TOLD:])
    raise LoadError(f"the programs can't be compiled or loaded (status {child.returncode}):\n{words}")


def _telling(stderr: str) -> list[str]:
    """What the compiler, the verifier or Python said, without the traceback of the child's own code."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(("Traceback", "  "))] or lines
