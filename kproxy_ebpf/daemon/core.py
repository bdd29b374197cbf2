"""Joins the parts of the daemon and runs them: lock, servers, settings, datapath, source, reconciler."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
import uvloop

from kproxy_ebpf import __version__
from kproxy_ebpf.cni.conflist import entry_of
from kproxy_ebpf.config import Balancing, SettingsFile, SettingsKeeper
from kproxy_ebpf.daemon.backlog import Backlog
from kproxy_ebpf.daemon.building import Building
from kproxy_ebpf.daemon.cluster_source import Cluster, connected, source_problems
from kproxy_ebpf.daemon.cni_chain import ChainKeeper
from kproxy_ebpf.daemon.cni_server import CniServer
from kproxy_ebpf.daemon.conflicts import Conflicts, sentence
from kproxy_ebpf.daemon.datapath import Datapath
from kproxy_ebpf.daemon.explain import Explainer
from kproxy_ebpf.daemon.flows import keep_room
from kproxy_ebpf.daemon.modes import ModeSwitch
from kproxy_ebpf.daemon.options import Options
from kproxy_ebpf.daemon.reports import DatapathReports, Reports, at_random_sentence, full_sentence
from kproxy_ebpf.daemon.settings import Reporter, last_good, wait_for_first
from kproxy_ebpf.daemon.status import StatusFile
from kproxy_ebpf.daemon.supervise import Start, supervised
from kproxy_ebpf.errors import ConfigError
from kproxy_ebpf.kube.source import SettingsState
from kproxy_ebpf.linux import allocator
from kproxy_ebpf.model.snapshot import Event, Snapshot
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import DatapathCollector, Metrics
from kproxy_ebpf.observe.server import health_app, metrics_app, serving
from kproxy_ebpf.observe.state import DEFAULT_BPFFS, cni_socket, read_json, state_dir
from kproxy_ebpf.plan.services.plan import PlanSettings
from kproxy_ebpf.reconcile.services import Reconciler

log = structlog.get_logger(__name__)

SOURCE_REPORT_SECONDS = 0.5
NOT_LOADED = "the programs are not yet loaded"
NOT_SYNCED = "the cluster's state is not yet in the tables"
NOT_ON_LINKS = "the programs are not yet on the links of all pods"
COMPILING = "the programs are being compiled, for they are not kept on this node; pods are served as before meanwhile"


def serve(options: Options, building: Building) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises KproxyError."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(Daemon(options).run(building))
        except asyncio.CancelledError:
            log.info("ended: the datapath stays in force")


class Daemon:
    """What the parts share. Made for one `run`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = state_dir(options.bpffs)
        self.metrics = Metrics()
        self.health = Health(limit_seconds=2 * options.sync_period)
        self.keeper = SettingsKeeper(last_good(self.folder / "settings.json"))
        self.status = StatusFile(self.folder / "status.json", self._describe)
        self._found = read_json(self.folder / "status.json")
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._synced = asyncio.Event()
        self._reconciler: Reconciler | None = None
        self._conflicts: Conflicts | None = None
        self._modes: ModeSwitch | None = None
        self._chain: ChainKeeper | None = None

    async def run(self, building: Building) -> None:
        """Until cancelled. Raises KproxyError when a part can't start or dies."""
        _handle_signals()
        options = self.options
        async with AsyncExitStack() as stack:
            building.listen(self._compiling)
            stack.push_async_callback(self.status.finish)  # after all parts have ended
            explainer = Explainer(options.node_name, lambda: self.keeper.current.mode.is_on, lambda: self._reconciler)
            health = health_app(self.health, self.metrics, self._missing)
            metrics = metrics_app(self.metrics.registry, explainer.answer)
            await stack.enter_async_context(serving(health, options.health_address, "--health-address"))
            await stack.enter_async_context(serving(metrics, options.metrics_address, "--metrics-address"))
            cluster = await stack.enter_async_context(connected(options))
            async with supervised() as start_part:
                start_part("source report", self._report_sources(cluster))
                start_part("status", self.status.run())
                await self._follow_settings(cluster, start_part)
                backlog = Backlog()
                start_part("source", cluster.source.run(backlog.feed))
                datapath = Datapath(await building.generation(), options)
                stack.callback(datapath.close)  # after all parts have ended
                datapath_reports = DatapathReports(datapath.generation)
                stack.callback(datapath_reports.close)
                self.metrics.registry.register(DatapathCollector(datapath_reports.read))
                await self._serve(cluster, datapath, backlog, start_part)

    def _compiling(self, begins: bool) -> None:
        self.health.problem("programs", COMPILING if begins else None)

    async def _follow_settings(self, cluster: Cluster, start_part: Start) -> None:
        """Read the settings and follow them from now on."""
        self.keeper.listen(Reporter(self.folder / "settings.json", self.metrics, self.health, cluster.warn_settings))
        if cluster.recorder is not None:
            start_part("Kubernetes Events", cluster.recorder.run())
        answered: asyncio.Event | None = None
        if cluster.config_map is not None:
            answered = asyncio.Event()
            start_part("settings", cluster.config_map.run(partial(self._config_map, answered)))
        file = SettingsFile(self.options.config, self.keeper) if self.options.config is not None else None
        await wait_for_first(self.keeper, file, answered)
        if file is not None:
            start_part("settings", file.follow())

    def _config_map(self, answered: asyncio.Event, state: SettingsState) -> None:
        def read() -> Mapping[str, str]:
            if isinstance(state, ConfigError):
                raise state
            return state

        self.keeper.offer(read)
        answered.set()

    async def _serve(self, cluster: Cluster, datapath: Datapath, backlog: Backlog, start_part: Start) -> None:
        """Fill the tables and attach the programs. Tables that are not ready are filled before programs use them."""
        self._conflicts = Conflicts(cluster.warn_conflict)
        reports = Reports(self.metrics, self.health, self._changed, cluster.warn_refused)
        reconciler = self._reconciler = Reconciler(
            Snapshot(),
            datapath.tables(),
            datapath,
            self.options.node_name,
            self._plan_settings,
            observer=reports,
        )
        self.health.queued_since = lambda: reconciler.queued_since
        modes = self._modes = ModeSwitch(datapath, self.keeper, self.metrics, self.health, self._changed)
        self.keeper.listen(lambda _: self._settings_changed(reconciler))
        if datapath.is_ready:
            await datapath.sockets.catch_up()
        start_part("reconciler", reconciler.run())
        backlog.release(partial(self._submit, reconciler, reports))
        if not datapath.is_ready:
            await self._synced.wait()
        await datapath.take_over()
        start_part("links", modes.links.run())
        start_part("forwarding", modes.forwarding.run(modes.links))
        start_part("modes", modes.follow())
        start_part("guard", modes.guard(self.options.sync_period))
        start_part("sockets", datapath.sockets.terminate())
        self._start_cni(modes, start_part)
        start_part("room", keep_room(datapath.generation, self.health))
        await asyncio.gather(self._synced.wait(), modes.links.ready.wait(), modes.switched.wait())
        # The cluster's objects stay in memory. The collector need not walk them again: that takes longer than a change.
        gc.collect()
        gc.freeze()
        allocator.give_back()  # a start needs more than what follows
        self.health.synced = True
        log.info("in force", services=len(reconciler.snapshot.services), links=len(modes.links.attached))

    def _start_cni(self, modes: ModeSwitch, start_part: Start) -> None:
        options, socket = self.options, cni_socket(self.options.bpffs)
        server = CniServer(socket, modes.links, modes.switched.wait, self.metrics, self.health)
        entry = entry_of("" if socket == cni_socket(DEFAULT_BPFFS) else str(socket))
        folders = options.cni_conf_dir, options.cni_bin_dir
        self._chain = ChainKeeper(*folders, entry, server.listening, self.keeper, self.health, self._changed)
        start_part("CNI", server.run())  # first: the plugin goes into the list when it is answered
        start_part("CNI chain", self._chain.run())

    def _submit(self, reconciler: Reconciler, reports: Reports, events: Sequence[Event]) -> None:
        reconciler.submit(events)
        reports.events(events, reconciler.snapshot)
        self._changed()

    async def _report_sources(self, cluster: Cluster) -> None:
        """Keep /healthz and /metrics up to date about the sources; the datapath goes on without them."""
        self.metrics.source_connected.set_function(lambda: cluster.source.connected)
        while True:
            for topic, problem in source_problems(cluster.source, cluster.config_map).items():
                self.health.problem(topic, problem)
            await asyncio.sleep(SOURCE_REPORT_SECONDS)

    def _settings_changed(self, reconciler: Reconciler) -> None:
        reconciler.update_settings(self._plan_settings)
        self._changed()

    def _changed(self) -> None:
        self.status.touch()
        if self._reconciler is not None:
            self.health.problem("tables", full_sentence(self._reconciler.full_tables))
            self.health.problem("maglev", at_random_sentence(len(self._reconciler.at_random)))
            if self._conflicts is not None:
                self._conflicts.tell_new(self._reconciler.conflicts, self._reconciler.snapshot.services)
            if self._reconciler.first_sync_done:
                self._synced.set()

    def _missing(self) -> dict[str, str]:
        """What this node still lacks before it is served as the settings say, by topic."""
        if self._reconciler is None or self._modes is None:
            return {"programs": self.health.problems.get("programs", NOT_LOADED)}
        missing = self._modes.missing()
        if not self._reconciler.first_sync_done:
            missing["first-sync"] = NOT_SYNCED
        if not missing and not self.health.synced:
            missing["links"] = NOT_ON_LINKS
        return missing

    @property
    def _plan_settings(self) -> PlanSettings:
        return PlanSettings(maglev=self.keeper.current.balancing is Balancing.MAGLEV)

    def _describe(self) -> dict[str, Any]:
        """The content of the status file."""
        reconciler, modes = self._reconciler, self._modes
        ours = {
            "version": __version__,
            "pid": os.getpid(),
            "node": self.options.node_name,
            "started": self._started,
            "health_address": self.options.health_address,
            "settings": self.keeper.current.plain() if self.keeper.has_settings else {},
        }
        if reconciler is None or modes is None:  # of the datapath still holds what the daemon before us wrote
            return {**self._found, **ours, "synced": False, "refused": [], "conflicts": []}
        return {
            **ours,
            "synced": reconciler.first_sync_done,
            "links": sorted(modes.links.attached.values()),
            "cgroup": modes.cgroup,
            "cni": self._chain.state if self._chain else "",
            "redirect": modes.redirect.plain() if modes.redirect else None,
            "refused": [
                {"object": str(refused.ref), "reason": refused.reason}
                for refused in reconciler.snapshot.refused.values()
            ],
            "conflicts": [sentence(conflict) for conflict in reconciler.conflicts],
            "services": reconciler.service_names(),
        }


def _handle_signals() -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None  # noqa: S101 - this is called by a coroutine
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    loop.add_signal_handler(signal.SIGHUP, log.info, "SIGHUP is ignored: the daemon watches its settings by itself")
