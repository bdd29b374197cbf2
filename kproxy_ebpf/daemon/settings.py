"""Waits for the first settings, and reports when settings change or are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from kproxy_ebpf.config import Settings, SettingsFile, SettingsKeeper, parse_settings
from kproxy_ebpf.errors import ConfigError
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.logging import set_level
from kproxy_ebpf.observe.metrics import Metrics
from kproxy_ebpf.observe.state import read_json, write_json

log = structlog.get_logger(__name__)


class Reporter:
    """Listens to a keeper: log, metrics, health, a file for the next start, and `warn` (a Kubernetes Event)."""

    def __init__(self, saved: Path, metrics: Metrics, health: Health, warn: Callable[[str], None]) -> None:
        self._saved, self._metrics, self._health, self._warn = saved, metrics, health, warn
        self._told: Settings | None = None

    def __call__(self, keeper: SettingsKeeper) -> None:
        self._metrics.settings_valid.set(keeper.error is None)
        self._health.problem("settings", str(keeper.error) if keeper.error else None)
        if keeper.error:
            self._metrics.settings_errors.inc()
            log.error("settings refused: the last good ones stay in force", error=str(keeper.error))
            self._warn(str(keeper.error))
        elif keeper.current != self._told:
            self._in_force(keeper.current)

    def _in_force(self, settings: Settings) -> None:
        self._told = settings
        set_level(settings.log_level.value)
        log.info("settings in force", **settings.plain())
        unserved = list(settings.unserved())
        for sentence in unserved:
            log.warning("a setting is not served by this version", reason=sentence)
        self._health.problem("settings-unserved", "; ".join(unserved) or None)
        try:
            write_json(self._saved, settings.plain())
        except OSError as error:
            log.warning("the settings can't be saved for the next start", error=str(error))


def last_good(saved: Path) -> Settings | None:
    """The settings that `Reporter` saved in an earlier run; None where there are none that this version can read."""
    content = read_json(saved)
    try:
        return parse_settings(content) if content else None
    except ConfigError:  # of another version
        return None


async def wait_for_first(keeper: SettingsKeeper, file: SettingsFile | None, answered: asyncio.Event | None) -> None:
    """Wait until there are settings to work with: those of the file, of the ConfigMap (`answered`), or the defaults.

    While the API server does not answer, the settings of an earlier start serve. Raises ConfigError when the settings
    offered are bad and there are no earlier ones: a daemon must not run with settings that nobody chose.
    """
    if file is not None:
        file.read()
    elif answered is None:
        keeper.offer(Settings().plain)  # no source is a choice: of the defaults
    elif not keeper.has_settings:
        await answered.wait()
    if not keeper.has_settings and keeper.error is not None:
        raise keeper.error
