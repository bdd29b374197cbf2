"""Programs of earlier versions for datagrams: how long their links stay."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from kproxy_ebpf.datapath.sockets.datagrams import KEPT_SECONDS, retire_led_datagrams

OLD = {"cgroup-sendmsg_v4", "cgroup-sendmsg_v6", "cgroup-recvmsg_v4", "cgroup-recvmsg_mapped_v4", "cgroup-recvmsg_v6"}
OURS = {"cgroup-connect_v4", "cgroup-getpeername_v6", "7-from_pod_v4"}


@pytest.mark.parametrize(("age_seconds", "left"), [(KEPT_SECONDS - 1, OLD | OURS), (KEPT_SECONDS + 1, OURS)])
def test_they_stay_for_a_day(tmp_path: Path, age_seconds: float, left: set[str]) -> None:
    (tmp_path / "links").mkdir()
    for name in OLD | OURS:
        (tmp_path / "links" / name).touch()
    retire_led_datagrams(SimpleNamespace(root=tmp_path, age_seconds=age_seconds))  # type: ignore[arg-type]
    assert {pin.name for pin in (tmp_path / "links").iterdir()} == left
