"""What a lab leaves on the machine while it lives, so that the next run can clean up after a killed one.

/run/kproxy-ebpf/lab/RUN_ID/owner holds the owner's pid and start time; the folder also holds the lab's bpffs mounts,
manifests and logs. Namespaces carry the run id in their names (``kpx-RUN_ID-…``). A run is stale when its owner is
dead: the pid is free, or belongs to a process with another start time.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from kproxy_ebpf.lab import cgroups, netns
from kproxy_ebpf.lab.exclusive import exclusive
from kproxy_ebpf.observe.state import STATE_ROOT, state_dir

RUNS = STATE_ROOT / "lab"
PREFIX = "kpx"
_sequence = itertools.count(1)


def start_time(pid: int) -> str:
    """When `pid` was started, in clock ticks since the boot (proc(5), stat field 22); "" if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[19]


def claim() -> str:
    """Reserve a run id for this process; return it."""
    run_id = f"{os.getpid():x}.{next(_sequence)}"
    folder = RUNS / run_id
    folder.mkdir(parents=True)
    folder.joinpath("cgroup").write_text(str(cgroups.own_folder() / cgroups.ROOT / run_id))
    folder.joinpath("owner").write_text(f"{os.getpid()} {start_time(os.getpid())}")
    return run_id


def namespaces_of(run_id: str) -> list[str]:
    """The names of the namespaces that a run made and that still exist."""
    return sorted(path.name for path in netns.RUN_NETNS.glob(f"{PREFIX}-{run_id}-*"))


def cgroup_of(run_id: str) -> Path:
    """The folder of a run's cgroups. It need not exist: the first node makes it."""
    return Path((RUNS / run_id / "cgroup").read_text())


def release(run_id: str) -> None:
    """Remove everything of a run: processes, namespaces, cgroups, mounts, the folder."""
    folder = RUNS / run_id
    netns.delete(namespaces_of(run_id))
    with suppress(FileNotFoundError):  # killed before it had any
        cgroups.remove(cgroup_of(run_id))
    for mount in _mounts_below(folder):
        subprocess.run(["umount", "--lazy", str(mount)], check=True, timeout=10)
        shutil.rmtree(state_dir(mount), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def clean_stale() -> list[str]:
    """Remove what runs with a dead owner left; return their ids."""
    if not RUNS.is_dir():
        return []
    with exclusive(RUNS):
        stale = [folder.name for folder in sorted(RUNS.iterdir()) if not _owner_lives(folder)]
        for run_id in stale:
            release(run_id)
    return stale


def _owner_lives(folder: Path) -> bool:
    try:
        pid, _, started = folder.joinpath("owner").read_text().partition(" ")
    except FileNotFoundError:  # killed between mkdir and write, or just being claimed by the pid in the folder's name
        pid, started = str(int(folder.name.partition(".")[0], 16)), ""
        return bool(start_time(int(pid)))
    return bool(started) and start_time(int(pid)) == started


def _mounts_below(folder: Path) -> list[Path]:
    """Mount points inside `folder`, the deepest first."""
    mounts = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((path for path in mounts if folder in path.parents), key=lambda path: -len(path.parts))
