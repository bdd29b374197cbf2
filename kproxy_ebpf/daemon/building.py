"""Adopting or building the generation, in a thread of its own from the daemon's first moment on."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Self

import structlog

from kproxy_ebpf.daemon.options import Options
from kproxy_ebpf.datapath.generations.build import Workshop
from kproxy_ebpf.datapath.generations.compile import Compiler
from kproxy_ebpf.datapath.generations.generation import Generation, ensure
from kproxy_ebpf.datapath.generations.kept import default_folder
from kproxy_ebpf.linux.kernel import require_kernel

log = structlog.get_logger(__name__)

_SWITCH_SECONDS = 0.0005


@contextmanager
def _quick_switches() -> Iterator[None]:
    """Between two system calls this thread needs the interpreter for microseconds; others hold it for 5 ms a time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


class Building:
    """The work of a thread, begun on entering the block; the caller holds the NodeLock.

    The kernel's verifier takes most of the time and needs no interpreter, so the daemon goes on being imported, reads
    its settings and lists the cluster meanwhile. Leaving the block ends the work and waits until nothing is written to
    our pins any more; a generation that nobody has asked for by then is removed.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._compiler = Compiler(self._tell)
        self._compiling = False
        self._listener: Callable[[bool], None] | None = None
        self._work: Future[Generation] = Future()
        self._work.set_running_or_notify_cancel()  # whoever stops waiting for it does not end it
        self._thread = threading.Thread(target=self._run, name="building")
        self._is_wanted = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._compiler.stop()
        self._thread.join()
        if self._is_wanted or self._work.exception() is not None:
            return
        generation = self._work.result()
        if not generation.is_current:
            shutil.rmtree(generation.path)

    def listen(self, compiling: Callable[[bool], None]) -> None:
        """Call `compiling`, in this event loop, with True now or when compiling begins, and with False when it ends."""
        loop = asyncio.get_running_loop()

        def tell(begins: bool) -> None:
            loop.call_soon_threadsafe(compiling, begins)

        self._listener = tell
        if self._compiling:
            compiling(True)

    async def generation(self) -> Generation:
        """The generation to be in force. Raises NodeError, LoadError."""
        generation = await asyncio.wrap_future(self._work)
        self._is_wanted = True
        return generation

    def _run(self) -> None:
        try:
            with _quick_switches():
                generation = self._ensured()
        except BaseException as error:  # whoever asks for the generation gets it
            self._work.set_exception(error)
        else:
            self._work.set_result(generation)

    def _ensured(self) -> Generation:
        require_kernel()
        options, began = self._options, time.monotonic()
        workshop = Workshop(options.cache_dir or default_folder(), self._compiler)
        generation = ensure(options.bpffs, options.constants, workshop=workshop)
        what = "adopted" if generation.is_current else "built"
        log.info(f"datapath {what}", generation=generation.digest, seconds=round(time.monotonic() - began, 3))
        return generation

    def _tell(self, begins: bool) -> None:
        self._compiling = begins
        if self._listener is not None:
            self._listener(begins)
