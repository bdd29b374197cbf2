"""What /healthz and /livez answer, by kube-proxy's rules, and /readyz, by our own.

Pure state with injected clocks. Healthy while starting up and while every queued change is younger than the limit;
`error` marks trouble that kube-proxy has no word for (a datapath that is missing, a first sync that failed); `problem`
marks trouble that an operator should see and traffic survives (a bad setting, a full table, refused objects).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Health:
    """`limit_seconds` is twice the sync period; `clock` counts seconds monotonically, `now` is the wall's.

    `queued_since` says (by `clock`) when the oldest change came that is not in the maps, None where there is none: the
    reconciler knows, however many changes came and went meanwhile. `synced` says that the cluster's state is in force
    on every link for the first time; healthy starts before that. `redirect` says which links are redirected to.
    """

    limit_seconds: float
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = _utc_now
    queued_since: Callable[[], float | None] = lambda: None
    node_eligible: bool = True
    synced: bool = False
    errors: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    redirect: str | None = None
    _last_updated: datetime | None = None

    def updated(self) -> None:
        """A batch of changes has been written."""
        self._last_updated = self.now()

    def error(self, topic: str, sentence: str | None) -> None:
        """Say why the daemon is unhealthy, by topic; None clears it."""
        _put(self.errors, topic, sentence)

    def problem(self, topic: str, sentence: str | None) -> None:
        """Say what an operator should see although the daemon is healthy, by topic; None clears it."""
        _put(self.problems, topic, sentence)

    @property
    def late_seconds(self) -> float:
        """How long the oldest queued change has waited; 0 without one."""
        since = self.queued_since()
        return 0.0 if since is None else self.clock() - since

    @property
    def alive(self) -> bool:
        return self.late_seconds < self.limit_seconds and not self.errors

    @property
    def healthy(self) -> bool:
        return self.alive and self.node_eligible

    def livez(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /livez: the daemon alone, whatever becomes of the node."""
        return _status(self.alive), self._body(self.alive)

    def healthz(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /healthz: what a load balancer asks before it sends traffic to the node."""
        body = self._body(self.healthy)
        times = {key: body.pop(key) for key in ("lastUpdated", "currentTime")}
        return _status(self.healthy), {**times, "nodeEligible": self.node_eligible, **body}

    def readyz(self, missing: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """Status and body of /readyz: whether this node is served as its settings say. That the node is being deleted
        does not matter. `missing`: what is still to be done before that, by topic.
        """
        ready = self.alive and not missing
        return _status(ready), {**self._body(ready), "ready": ready, "missing": dict(missing)}

    def _body(self, good: bool) -> dict[str, Any]:
        # lastUpdated is the current time while healthy, as kube-proxy answers for old readers' sake.
        current = self.now()
        last = current if good else self._last_updated
        errors = dict(self.errors)
        if self.late_seconds >= self.limit_seconds:
            errors["sync"] = f"a change has waited for {self.late_seconds:.0f} s (limit {self.limit_seconds:.0f} s)"
        return {
            "lastUpdated": _rfc3339(last or datetime.min.replace(tzinfo=UTC)),
            "currentTime": _rfc3339(current),
            "healthy": self.alive,
            "synced": self.synced,
            "errors": errors,
            **({"redirect": self.redirect} if self.redirect else {}),
            "problems": dict(self.problems),
        }


def _put(where: dict[str, str], topic: str, sentence: str | None) -> None:
    if sentence is None:
        where.pop(topic, None)
    else:
        where[topic] = sentence


def _status(good: bool) -> int:
    return 200 if good else 503


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
