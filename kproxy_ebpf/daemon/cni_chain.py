"""Keeps our plugin in the list of CNI plugins that the node uses while the setting `cni` is chain, and out of it else.

A list with our plugin in it, and no program of that name or no daemon that answers it, would keep every pod of the node
from starting. So the plugin goes in last, when all else is there, and out first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path

import structlog

from kproxy_ebpf.cni.binary import is_installed
from kproxy_ebpf.cni.conflist import PLUGIN, ConflistError
from kproxy_ebpf.cni.folder import put_in, standing, take_out
from kproxy_ebpf.config import CniChain, SettingsKeeper
from kproxy_ebpf.linux.files import happenings
from kproxy_ebpf.observe.health import Health

log = structlog.get_logger(__name__)

TOPIC = "cni"
REST_MAX_SECONDS = 60.0
STEADY_SECONDS = 120.0  # a plugin that was in the list for that long has stayed
STRIFE_COUNT = 4  # of times that it was put in without staying


class Patience:
    """How long to leave a list alone that another agent writes anew whenever we have changed it: twice as long each
    time, up to REST_MAX_SECONDS.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._put_at = 0.0
        self._count = 0

    @property
    def is_strife(self) -> bool:
        """True if the other agent seems to do it every time."""
        return self._count >= STRIFE_COUNT and self._clock() - self._put_at < STEADY_SECONDS

    @property
    def rest_seconds(self) -> float:
        """How long to wait from now on; 0 or less: not at all."""
        rest = min(REST_MAX_SECONDS, 2.0 ** (self._count - 1)) if self._count else 0.0
        return self._put_at + rest - self._clock()

    def put(self) -> None:
        """The plugin has been put in, once more."""
        now = self._clock()
        self._count = self._count + 1 if now - self._put_at < STEADY_SECONDS else 1
        self._put_at = now


class ChainKeeper:
    """`conf_dir` has the node's lists, `bin_dir` its plugins, `entry` is our element of a list. `run` it as a task.

    `served` is set while the daemon answers the plugin. `state` says in a sentence what is in force, for people;
    `changed` is called when it is another one.
    """

    def __init__(
        self,
        conf_dir: Path,
        bin_dir: Path,
        entry: Mapping[str, str],
        served: asyncio.Event,
        keeper: SettingsKeeper,
        health: Health,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self.state = ""
        self._conf_dir, self._bin_dir, self._entry, self._served = conf_dir, bin_dir, entry, served
        self._keeper, self._health, self._changed = keeper, health, changed
        self._patience = Patience()
        self._wake = asyncio.Event()
        self._chains = asyncio.Event()
        keeper.listen(self._on_settings)
        self._on_settings(keeper)

    async def run(self) -> None:
        """Until cancelled. The plugin then stays in the list: it waits for the next daemon."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._look()

    def _on_settings(self, keeper: SettingsKeeper) -> None:
        if keeper.current.cni is CniChain.CHAIN:
            self._chains.set()
        else:
            self._chains.clear()
        self._wake.set()

    async def _watch(self) -> None:
        """Wake for what other agents do, as long as that matters."""
        while True:
            await self._chains.wait()
            async with aclosing(happenings(self._conf_dir)) as events:
                async for _ in events:
                    self._wake.set()
                    if not self._chains.is_set():
                        break

    async def _look(self) -> None:
        try:
            problem = await (self._chain() if self._chains.is_set() else self._unchain())
        except ConflistError:
            problem = None  # what stands there says it
        except OSError as error:
            problem = f"the list of CNI plugins can't be written: {error.filename}: {error.strerror}"
        found = await asyncio.to_thread(standing, self._conf_dir)
        chains = self._chains.is_set()
        if chains and not found.is_in:
            problem = problem or str(found)
        state = str(found) if chains or found.is_in else ""
        if (problem, state) != (self._health.problems.get(TOPIC), self.state):
            self.state = state
            if problem:
                log.warning("the CNI chain is not as it should be", reason=problem)
            elif state:
                log.info("CNI chain", state=state)
            self._health.problem(TOPIC, problem)
            self._changed()

    async def _chain(self) -> str | None:
        """Put the plugin in, if it is not; what is wrong."""
        if not is_installed(self._bin_dir):
            await self._unchain()
            return f"{PLUGIN} is not in {self._bin_dir}: kproxy-ebpf install-cni puts it there"
        if not self._served.is_set():
            await self._unchain()
            return f"{PLUGIN} would not be answered: it is not put into the list of CNI plugins"
        rest_seconds = self._patience.rest_seconds
        if rest_seconds > 0 and not (await asyncio.to_thread(standing, self._conf_dir)).is_in:
            asyncio.get_running_loop().call_later(rest_seconds, self._wake.set)
        elif await asyncio.to_thread(put_in, self._conf_dir, self._entry):
            self._patience.put()
        if self._patience.is_strife:
            return (
                f"another agent takes {PLUGIN} out of the list again and again: let that agent write the list with it"
            )
        return None

    async def _unchain(self) -> None:
        for path in await asyncio.to_thread(take_out, self._conf_dir):
            log.info("taken out of a list of CNI plugins", file=str(path))
