"""What the daemon answers to a question about a Service, and with which status."""

from __future__ import annotations

import pytest
from explained import NAME, FakeReconciler, explainer


@pytest.mark.parametrize(
    ("name", "is_on", "status", "state"),
    [("web", True, 200, "served"), ("nobody", True, 404, "unknown"), ("nobody", False, 200, "off")],
)
def test_the_daemon_answers_with_a_status(name: str, is_on: bool, status: int, state: str) -> None:
    answered, body = explainer(FakeReconciler(), is_on=is_on).answer("shop", name)
    assert (answered, body["state"], body["node"]) == (status, state, "here")
    assert bool(body["reason"]) == (state != "served")


def test_the_daemon_says_that_a_service_does_not_fit() -> None:
    _, body = explainer(FakeReconciler()).answer(*NAME)
    assert body["problems"] == [
        "table slots_v4 has no room for it: what it had in the tables before stays",
        "the slots have no room for its Maglev table: it is balanced at random",
    ]


def test_the_daemon_knows_nothing_before_it_has_read_the_cluster() -> None:
    reconciler = FakeReconciler()
    reconciler.first_sync_done = False
    for each in (None, reconciler):
        assert explainer(each).answer(*NAME)[0] == 503
