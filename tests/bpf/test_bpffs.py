"""bpffs: mounted where it is missing, and locked by one daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kproxy_ebpf.datapath.generations.bpffs import NodeLock, is_bpffs
from kproxy_ebpf.errors import BusyError, NodeError


def test_bpffs_is_mounted_where_it_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "deep/bpffs"
    with NodeLock(folder):
        assert is_bpffs(folder)
    subprocess.run(["umount", folder], check=True)
    assert not is_bpffs(folder)


def test_no_place_for_bpffs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeError, match="mount one there"):
        NodeLock(tmp_path / "file")


def test_two_daemons_on_one_node(bpffs: Path) -> None:
    script = "import sys; from pathlib import Path; from kproxy_ebpf.datapath.generations.bpffs import NodeLock\n"
    script += "NodeLock(Path(sys.argv[1])).acquire()"
    other = [sys.executable, "-c", script, str(bpffs)]
    with NodeLock(bpffs):
        child = subprocess.run(other, capture_output=True, text=True, check=False)
        assert child.returncode != 0
        assert f"BusyError: process {os.getpid()} " in child.stderr
    assert subprocess.run(other, check=False).returncode == 0, "released"
    lock = NodeLock(bpffs)
    lock.acquire()
    with pytest.raises(BusyError):
        NodeLock(bpffs).acquire()
    lock.release()
