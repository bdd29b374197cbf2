"""The lock, and files that readers never see half-written."""

import fcntl
import os
from pathlib import Path

import pytest

from kproxy_ebpf.observe.state import is_running, read_json, state_dir, write_json


def test_each_bpffs_has_its_own_folder() -> None:
    assert state_dir(Path("/sys/fs/bpf")) == Path("/run/kproxy-ebpf/state")
    assert state_dir(Path("/lab/node1/bpffs")) == Path("/lab/node1/bpffs.state")


def test_content_comes_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "status.json"
    write_json(file, {"refused": []})
    write_json(file, {"refused": ["a"]})
    assert read_json(file) == {"refused": ["a"]}
    assert [path.name for path in file.parent.iterdir()] == ["status.json"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert read_json(file) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("content", ["", "[1]", "{", None])
def test_an_unreadable_file_is_no_status(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "status.json"
    if content is not None:
        file.write_text(content)
    assert read_json(file) == {}


def test_a_held_lock_means_a_running_daemon(tmp_path: Path) -> None:
    assert not is_running(tmp_path)
    (tmp_path / "kproxy-ebpf").mkdir()
    descriptor = os.open(tmp_path / "kproxy-ebpf", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert is_running(tmp_path)
    finally:
        os.close(descriptor)
    assert not is_running(tmp_path)
