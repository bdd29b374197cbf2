"""The load generator: compiled once into the user's cache, its servers and its clients."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from kproxy_ebpf.lab import Namespace
from kproxy_ebpf.lab.cache import cache_folder

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
WARM_UP_SECONDS = 0.2
CONNECTIONS = 8
# Whatever else runs on the machine waits: what is compared must have the core. The kernel shares time between
# sessions first (autogroup), so a nice value alone would count among a session's own processes only.
URGENT = ("sh", "-c", 'echo -20 2>/dev/null >/proc/self/autogroup; exec nice -n -20 "$@"', "sh")


def build() -> Path:
    """The program, compiled if its sources have changed. Raises CalledProcessError."""
    digest = sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()[:16]
    cache = cache_folder("bench")
    program = cache / f"load-{digest}"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        beside = program.with_suffix(f".{os.getpid()}")
        programs = [source for source in SOURCES if source.suffix == ".c"]
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-std=gnu11", "-o", beside, *programs], check=True)
        beside.rename(program)
    return program


def serve(program: Path, place: Namespace, address: str, port: int) -> subprocess.Popen[str]:
    """Start an echo server and wait until it listens. Raises RuntimeError."""
    process = place.popen(
        [*URGENT, program, "server", address, str(port)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"the server on {address} did not start")
    return process


def run(
    program: Path,
    place: Namespace,
    words: Sequence[str],
    *,
    seconds: float,
    cores: Sequence[int],
    warm_up: float = WARM_UP_SECONDS,
) -> dict[str, Any]:
    """One measurement; what the program printed (see report() in load_client.c). `words`: kind, protocol, options,
    addresses, port. Raises CalledProcessError.
    """
    kind, protocol, *rest = words
    client: list[str | Path] = [program, "client", kind, protocol, "-s", str(seconds), "-w", str(warm_up), *rest]
    command: list[str | Path] = [*URGENT, "taskset", "-c", ",".join(map(str, cores)), *client]
    done = place.run(command, timeout=seconds + 30, start_new_session=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def answers(program: Path, place: Namespace, target: str, port: int) -> bool:
    """Does one request come back within a moment?"""
    options = ["-c", "1", "-n", "1", "-s", "0.2"]
    done = place.run([program, "client", "short", "tcp", *options, target, str(port)])
    return bool(json.loads(done.stdout)["requests"])
