"""The daemon on a node of the lab: a process of its own with its own bpffs, manifests, settings and log."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import yaml

from kproxy_ebpf.lab.cache import with_compiled_programs
from kproxy_ebpf.lab.cluster import Node
from kproxy_ebpf.lab.manifests import Manifests
from kproxy_ebpf.lab.wait import until

COMMAND = Path(sys.executable).with_name("kproxy-ebpf")
HEALTH_PORT, METRICS_PORT = 10356, 10349
START_SECONDS = 240  # the first start compiles


class Daemon:
    """``kproxy-ebpf run`` on `node`, pins in a bpffs of its own. As a context manager: running inside the block.

    `environment` is added to this process's: with PYTHONPATH another version of the package runs at the next start,
    with KPROXY_BPF_SOURCE other programs.
    """

    def __init__(self, node: Node, *, flags: Sequence[str] = (), settings: Mapping[str, str] | None = None) -> None:
        self.node = node
        self.flags = list(flags)
        self.environment: dict[str, str] = {}
        self.folder = node.lab.folder / node.name
        self.bpffs = self.folder / "bpffs"
        if not self.bpffs.exists():  # else a node's second daemon: it finds what the first one left, as in life
            self.bpffs.mkdir(parents=True)
            subprocess.run(["mount", "-t", "bpf", "bpf", str(self.bpffs)], check=True, timeout=10)
        self.manifests = Manifests(self.folder / "manifests")
        self.log_path = self.folder / "daemon.log"
        self.config_path = self.folder / "config.yaml"
        self.settings(settings or {})
        self.process: subprocess.Popen[str] | None = None

    def settings(self, values: Mapping[str, str]) -> None:
        """Replace the settings file, atomically; a running daemon follows it."""
        beside = self.folder / ".config.tmp"
        beside.write_text(yaml.safe_dump(dict(values)))
        beside.rename(self.config_path)

    def arguments(self) -> list[str]:
        return [
            *(str(COMMAND), "run", "--node-name", self.node.name),
            *("--manifests", str(self.manifests.folder), "--config", str(self.config_path)),
            *("--bpffs", str(self.bpffs), "--cgroup", str(self.node.cgroup.folder), *self.flags),
        ]

    def launch(self) -> None:
        """Start the process and don't wait for it."""
        with self.log_path.open("a") as log:
            environment = with_compiled_programs({**os.environ, **self.environment})
            self.process = self.node.popen(self.arguments(), stdout=log, stderr=subprocess.STDOUT, env=environment)

    def start(self) -> None:
        """Start, and wait until everything that the source has is in force."""
        self.launch()
        self.wait_ready()

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Raises RuntimeError with the log's end when the daemon dies, TimeoutError when it doesn't get ready."""
        assert self.process is not None  # noqa: S101 - launch() came before
        process = self.process

        def ready() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"the daemon ended with code {process.returncode}:\n{self.log()[-4000:]}")
            status, body = self.healthz()
            return status == 200 and bool(body["synced"])

        try:
            until(ready, "everything to be in force", seconds=seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.log()[-4000:]}") from None

    def stop(self) -> int:
        """SIGTERM and reap; return the exit code."""
        assert self.process is not None  # noqa: S101 - it was started
        process, self.process = self.process, None
        return self.node.end(process, grace_seconds=10)

    def kill(self) -> None:
        """SIGKILL and reap."""
        assert self.process is not None  # noqa: S101 - it was started
        self.process.kill()
        self.stop()

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def get(self, path: str, port: int) -> tuple[int, str]:
        """The status and body of an HTTP answer from the node's loopback. Raises OSError."""
        with self.node.inside():
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except HTTPException as error:
                raise ConnectionError(f"{path}: {error!r}") from error
            finally:
                connection.close()

    def healthz(self) -> tuple[int, dict[str, Any]]:
        status, body = self.get("/healthz", HEALTH_PORT)
        return status, json.loads(body)

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels, as written there."""
        lines = re.findall(r"^([^#\s]\S*(?:\{.*\})?) (\S+)$", self.get("/metrics", METRICS_PORT)[1], re.MULTILINE)
        return {name: float(value) for name, value in lines}

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run another command (``flows``, ``status``, …) of this node."""
        return self.node.run([COMMAND, words[0], "--bpffs", self.bpffs, *words[1:]], check=check)

    def json(self, *words: str) -> Any:
        """What a command prints with ``-o json``."""
        return json.loads(self.command(*words, "-o", "json").stdout)

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.stop()
