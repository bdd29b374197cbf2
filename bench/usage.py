"""What a process weighs and what cores do, from /proc."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """MiB now (`rss`, `pss`) and at most (`peak_rss`); CPU seconds so far, those of ended children included."""

    rss: float
    pss: float
    peak_rss: float
    cpu_seconds: float


def usage(pid: int) -> Usage:
    """Raises OSError when there is no such process, or one that has ended and is not yet reaped."""
    proc = Path(f"/proc/{pid}")
    rollup, status = _kib(proc / "smaps_rollup"), _kib(proc / "status")
    if "VmHWM" not in status:  # it has no memory any more
        raise ProcessLookupError(f"process {pid} has ended")
    # The name, in parentheses, may hold blanks; utime, stime, cutime, cstime are the 14th to 17th fields.
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    ticks = sum(int(text) for text in fields[11:15])
    return Usage(rollup["Rss"] / 1024, rollup["Pss"] / 1024, status["VmHWM"] / 1024, ticks / TICKS_PER_SECOND)


def _kib(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}


def busy_seconds(cores: Sequence[int]) -> float:
    """What these cores have spent on anything but idling since the boot, in ticks' precision."""
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    ticks = {words[0]: [int(text) for text in words[1:]] for words in lines if words[0].startswith("cpu")}
    # user nice system idle iowait irq softirq steal …; guest time is in user already, and stolen time is nobody's work.
    busy = (ticks[f"cpu{core}"] for core in cores)
    return sum(sum(times[:3]) + sum(times[5:7]) for times in busy) / TICKS_PER_SECOND
