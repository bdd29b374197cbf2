"""Health by kube-proxy's rules, with clocks that only the test moves."""

from datetime import UTC, datetime, timedelta

from kproxy_ebpf.observe.health import Health

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock:
    """Monotonic seconds and wall time that move together."""

    seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return START + timedelta(seconds=self.seconds - 100)


def health_at(clock: Clock) -> Health:
    return Health(limit_seconds=60, clock=clock.monotonic, now=clock.wall)


def test_healthy_while_starting_up() -> None:
    clock = Clock()
    status, body = health_at(clock).healthz()
    assert status == 200
    assert list(body)[:3] == ["lastUpdated", "currentTime", "nodeEligible"]
    assert body["lastUpdated"] == body["currentTime"] == "2026-01-02T03:04:05Z"


def test_a_queued_change_may_wait_up_to_the_limit() -> None:
    clock = Clock()
    health = health_at(clock)
    health.updated()
    since: float | None = clock.seconds
    health.queued_since = lambda: since
    clock.seconds += 59
    assert health.healthz()[0] == 200
    clock.seconds += 1
    status, body = health.healthz()
    assert status == 503
    assert body["lastUpdated"] == "2026-01-02T03:04:05Z"
    assert body["currentTime"] == "2026-01-02T03:05:05Z"
    assert "60 s" in body["errors"]["sync"]
    since = None
    assert health.healthz()[0] == 200


def test_never_updated_reads_as_the_year_one() -> None:
    health = health_at(Clock())
    health.error("datapath", "gone")
    assert health.healthz()[1]["lastUpdated"] == "0001-01-01T00:00:00Z"


def test_a_node_on_its_way_out_fails_healthz_only() -> None:
    health = health_at(Clock())
    health.node_eligible = False
    status, body = health.healthz()
    assert (status, body["nodeEligible"]) == (503, False)
    status, body = health.livez()
    assert status == 200
    assert "nodeEligible" not in body


def test_ready_is_who_lacks_nothing() -> None:
    health = health_at(Clock())
    status, body = health.readyz({"programs": "not loaded"})
    assert (status, body["ready"], body["missing"]) == (503, False, {"programs": "not loaded"})
    assert body["lastUpdated"] == "0001-01-01T00:00:00Z"
    assert health.healthz()[0] == health.livez()[0] == 200, "a daemon that starts is healthy"
    status, body = health.readyz({})
    assert (status, body["ready"], body["missing"]) == (200, True, {})


def test_a_node_on_its_way_out_is_ready_and_one_with_an_error_is_not() -> None:
    health = health_at(Clock())
    health.node_eligible = False
    assert health.readyz({})[0] == 200
    health.error("first-sync", "failed")
    status, body = health.readyz({})
    assert (status, body["ready"], body["errors"]) == (503, False, {"first-sync": "failed"})


def test_an_error_is_unhealthy_until_it_is_cleared() -> None:
    health = health_at(Clock())
    health.error("datapath", "pins are missing")
    assert health.livez()[0] == health.healthz()[0] == 503
    assert health.healthz()[1]["errors"] == {"datapath": "pins are missing"}
    health.error("datapath", None)
    assert health.livez()[0] == 200


def test_a_problem_is_shown_and_stays_healthy() -> None:
    health = health_at(Clock())
    health.problem("settings", "setting mode can't be 'x'")
    status, body = health.healthz()
    assert status == 200
    assert body["problems"] == {"settings": "setting mode can't be 'x'"}
    health.problem("settings", None)
    assert health.healthz()[1]["problems"] == {}
