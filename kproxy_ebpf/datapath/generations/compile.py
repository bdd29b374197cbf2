"""Runs the child processes that compile (build_child), one for each address family, at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self

from kproxy_ebpf.datapath.generations.kept import digest_of
from kproxy_ebpf.datapath.generations.object_file import ObjectFile, compiled_from_json
from kproxy_ebpf.errors import LoadError, NodeError
from kproxy_ebpf.linux.headers import headers_tree

_STREAMS = ("input", "output", "errors")
_LINES_TOLD = 20
_SECONDS = 300


class StoppedError(LoadError):
    """Another thread ended the work: nobody wants what would come of it."""


class Compiler:
    """Compiles, until another thread says `stop`. `tell` is called with True when it begins, False when it is done."""

    def __init__(self, tell: Callable[[bool], None] = lambda _: None) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._children: list[_Child] = []
        self._stopped = False

    def stop(self) -> None:
        """End what runs, and whatever would follow."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                child.kill()

    @property
    def running(self) -> list[int]:
        """The processes that compile."""
        return [child.pid for child in self._children]

    def go_on(self) -> None:
        """Raises StoppedError after `stop`."""
        if self._stopped:
            raise StoppedError("the build was stopped")

    def compile(self, texts: Mapping[int, str]) -> ObjectFile:
        """Compile each family's text.

        Raises LoadError with the compiler's last words, NodeError without headers or bcc.
        """
        headers = headers_tree()
        self._tell(True)
        try:
            with ExitStack() as stack:
                with self._lock:
                    self.go_on()
                    self._children = [stack.enter_context(_Child(text, headers)) for text in texts.values()]
                answers = dict(zip(texts, [child.answer() for child in self._children], strict=True))
        except LoadError:
            self.go_on()
            raise
        finally:
            self._tell(False)
        tools = next(iter(answers.values()))["tools"]
        families = {family: compiled_from_json(answer["compiled"]) for family, answer in answers.items()}
        return ObjectFile(digest_of(texts), tools, families)


class _Child:
    """One process. What it reads and writes is in memory: a full disk or a pipe that nobody empties can't stop it."""

    def __init__(self, text: str, headers: Path) -> None:
        order = json.dumps({"text": text, "parent": os.getpid()}).encode()
        self._input, self._output, self._errors = (os.fdopen(os.memfd_create(name), "w+b") for name in _STREAMS)
        self._input.write(order)
        self._input.seek(0)
        # -P: of the daemon's own version, not of one that happens to be in the working directory.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kproxy_ebpf.datapath.generations.build_child"],
            stdin=self._input,
            stdout=self._output,
            stderr=self._errors,
            env=os.environ | {"BCC_KERNEL_SOURCE": str(headers)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.wait()
        for stream in (self._input, self._output, self._errors):
            stream.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """Harmless where it has ended."""
        self._process.kill()

    def answer(self) -> dict[str, Any]:
        """Wait for it. Raises LoadError, NodeError."""
        try:
            status = self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            raise LoadError(f"the programs could not be compiled within {_SECONDS} s") from None
        output, errors = _all_of(self._output), _all_of(self._errors).decode(errors="replace")
        if status == 0:
            answer: dict[str, Any] = json.loads(output)
            return answer
        if "No module named 'bcc'" in errors:
            raise NodeError("the Python module bcc is missing: apt install python3-bpfcc (not the bcc on PyPI)")
        words = "\n".join(_telling(errors)[-_LINES_TOLD:])
        raise LoadError(f"the programs can't be compiled (status {status}):\n{words}")


def _all_of(stream: IO[bytes]) -> bytes:
    stream.seek(0)
    return stream.read()


def _telling(stderr: str) -> list[str]:
    """What the compiler or Python said, without the traceback of the child's own code."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(("Traceback", "  "))] or lines
