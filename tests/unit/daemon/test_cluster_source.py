"""The sentences about sources whose changes can't be seen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kproxy_ebpf.daemon.cluster_source import source_problems


def source(error: str) -> Any:
    return SimpleNamespace(last_error=error)


@pytest.mark.parametrize(
    ("cluster", "settings", "problems"),
    [
        ("", None, {"source": None}),
        ("", "", {"source": None, "settings-source": None}),
        (
            "refused",
            "403",
            {
                "source": "what changes in the cluster can't be seen: refused",
                "settings-source": "what changes in the settings can't be seen: 403",
            },
        ),
    ],
)
def test_each_source_that_can_not_be_seen_is_a_problem(cluster, settings, problems):
    assert source_problems(source(cluster), None if settings is None else source(settings)) == problems
