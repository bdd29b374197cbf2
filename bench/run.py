"""Everything that one run of the bench finds, kept as JSON beside the command that made it."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.samples import Key, Sample

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True)
class Weight:
    """A proxy's memory in MiB and the seconds from its start to its first effect; `note` where there was none."""

    table: str
    setting: str
    path: str
    services: int
    rss: float
    pss: float
    seconds_to_effect: float | None = None
    cpu_ms_per_change: float | None = None
    note: str = ""
    peak: float | None = None  # of the proxy and its children until then, PSS


@dataclass(frozen=True, slots=True)
class Cost:
    """One program of one path under one workload. A tail-called program's time is its caller's."""

    path: str
    workload: str
    program: str
    runs_per_request: float
    ns_per_run: float


@dataclass(frozen=True, slots=True)
class Step:
    """What one program costs on one kind of packet, alone and repeated (BPF_PROG_TEST_RUN)."""

    packet: str
    program: str
    ns: float
    instructions: int
    verified: int  # instructions that the verifier walked


@dataclass(frozen=True, slots=True)
class Freshness:
    """Milliseconds over `changes` changes. `lost`: those that never reached the map."""

    changes: int
    lost: int
    event_to_map_p50_ms: float
    event_to_map_p99_ms: float
    event_to_map_max_ms: float
    patch_to_map_p50_ms: float
    patch_to_map_p99_ms: float


@dataclass(slots=True)
class Run:
    """`seconds` tells how long each table took, `notes` what was not measured and why."""

    command: str = ""
    date: str = ""
    commit: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    freshness: list[Freshness] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, plan: Mapping[str, Any]) -> Run:
        """With what is to be known of this machine and this checkout."""
        command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
        return cls(command, datetime.now(UTC).isoformat(timespec="seconds"), commit(), machine(), plan)

    def progress(self, text: str) -> None:
        progress(text)

    def note(self, text: str) -> None:
        progress(text)
        self.notes.append(text)

    def save(self, path: Path) -> None:
        """One line for each sample: small, and readable in a diff."""
        path.parent.mkdir(exist_ok=True)
        parts = []
        for name, value in asdict(self).items():
            if isinstance(value, list) and value:
                lines = ",\n".join(f"  {json.dumps(rounded(item))}" for item in value)
                parts.append(f'"{name}": [\n{lines}\n]')
            else:
                parts.append(f'"{name}": {json.dumps(rounded(value))}')
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n")

    @classmethod
    def load(cls, path: Path) -> Run:
        """Raises OSError, ValueError, TypeError."""
        told = json.loads(path.read_text())
        kinds = {"weights": Weight, "costs": Cost, "steps": Step, "freshness": Freshness}
        for name, kind in kinds.items():
            told[name] = [kind(**item) for item in told[name]]
        told["samples"] = [
            Sample(Key(*item["key"]), item["round"], item["metrics"], item["errors"]) for item in told["samples"]
        ]
        return cls(**{each.name: told[each.name] for each in fields(cls)})


def rounded(value: Any) -> Any:
    """Six digits are more than any of this is worth."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def progress(text: str) -> None:
    print(f"[{time.monotonic() - _STARTED:5.0f} s] {text}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory_kib = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "kernel": platform.release(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_mib": int(memory_kib[1]) // 1024 if memory_kib else 0,
        "load_average": os.getloadavg()[0],
    }


def machine_line(facts: Mapping[str, Any]) -> str:
    return f"Linux {facts['kernel']}, {facts['cores']} cores ({facts['cpu']}), {facts['memory_mib'] // 1024} GiB"


def commit() -> str:
    def git(*words: str) -> str:
        where = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, check=False).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--", "../bpf_src", "../kproxy_ebpf") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


_STARTED = time.monotonic()
