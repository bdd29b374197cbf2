"""The node's folder of lists, while other agents write there."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kproxy_ebpf.cni import folder as module
from kproxy_ebpf.cni.conflist import ConflistError, entry_of, has_plugin
from kproxy_ebpf.cni.folder import Standing, put_in, replace, standing, take_out, used_file

OURS = entry_of()
LIST = '{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "ptp"}]}\n'
SINGLE = '{"cniVersion": "1.0.0", "name": "b", "type": "ptp"}'
MULTUS = '{"cniVersion": "1.0.0", "name": "multus", "type": "multus-shim"}'


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, text: str = LIST) -> Path:
        (path := tmp_path / name).write_text(text)
        return path

    return write


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_list_that_sorts_first_is_the_nodes(tmp_path: Path, write: Callable[..., Path]) -> None:
    names = ["20-b.conflist", "00-note.txt", "10-a.conflist.cilium_bak", "5-c.conflist", "10-a.conflist"]
    for name in names:
        write(name)
    (tmp_path / "00-folder.conflist").mkdir()
    assert used_file(tmp_path) == tmp_path / "10-a.conflist"
    assert put_in(tmp_path, OURS)
    assert [name for name in names if has_plugin((tmp_path / name).read_text())] == ["10-a.conflist"]
    assert not put_in(tmp_path, OURS)
    assert standing(tmp_path) == Standing(tmp_path / "10-a.conflist", is_in=True)


def test_a_list_that_sorts_before_takes_its_place(tmp_path: Path, write: Callable[..., Path]) -> None:
    old = write("10-a.conflist")
    put_in(tmp_path, OURS)
    new = write("05-b.conflist")
    assert not standing(tmp_path).is_in
    assert put_in(tmp_path, OURS)
    assert has_plugin(new.read_text())
    assert old.read_text() == LIST


def test_the_list_behind_multus_is_the_nodes(tmp_path: Path, write: Callable[..., Path]) -> None:
    write("00-multus.conf", MULTUS)
    path = write("10-a.conflist")
    put_in(tmp_path, OURS)
    assert has_plugin(path.read_text())
    assert (tmp_path / "00-multus.conf").read_text() == MULTUS


@pytest.mark.parametrize("name", ["10-b.conf", "10-b.json"])
def test_a_single_plugin_is_told_and_left_alone(tmp_path: Path, write: Callable[..., Path], name: str) -> None:
    write(name, SINGLE)
    write("20-a.conflist")
    before = contents(tmp_path)
    with pytest.raises(ConflistError, match="single plugin"):
        put_in(tmp_path, OURS)
    assert contents(tmp_path) == before
    assert "single plugin" in str(standing(tmp_path))


@pytest.mark.parametrize("text", ["", "{", '{"cniVersion": "7", "plugins": [{"type": "ptp"}]}', "\udcff"])
def test_a_first_list_that_can_not_be_used_is_told_and_left_alone(
    tmp_path: Path, write: Callable[..., Path], text: str
) -> None:
    (tmp_path / "10-a.conflist").write_bytes(os.fsencode(text))
    write("20-a.conflist")
    with pytest.raises(ConflistError):
        put_in(tmp_path, OURS)
    assert (tmp_path / "20-a.conflist").read_text() == LIST, "the runtime would not use it either"
    found = standing(tmp_path)
    assert (found.file, found.is_in) == (tmp_path / "10-a.conflist", False)
    assert "10-a.conflist" in found.problem


def test_no_list_is_ever_made(tmp_path: Path) -> None:
    assert not put_in(tmp_path, OURS)
    assert list(tmp_path.iterdir()) == []
    assert "no CNI configuration yet" in str(standing(tmp_path))
    assert take_out(tmp_path / "absent") == []
    assert "can't be read" in str(standing(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError):
        put_in(tmp_path / "absent", OURS)


def test_taking_out_restores_every_list(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write("10-a.conflist")
    write("20-broken.conflist", "{")
    (tmp_path / "30-dangling.conflist").symlink_to("nowhere")
    path.chmod(0o600)
    put_in(tmp_path, OURS)
    assert path.stat().st_mode & 0o777 == 0o600
    assert take_out(tmp_path) == [path]
    assert path.read_text() == LIST
    assert path.stat().st_mode & 0o777 == 0o600
    assert take_out(tmp_path) == []


def test_a_link_to_a_list_stays_one(tmp_path: Path, write: Callable[..., Path]) -> None:
    (tmp_path / "real").mkdir()
    real = write("real/list.conflist")
    (tmp_path / "10-a.conflist").symlink_to(real)
    put_in(tmp_path, OURS)
    assert (tmp_path / "10-a.conflist").is_symlink()
    assert has_plugin(real.read_text())


def test_nothing_is_written_over_what_another_agent_wrote_meanwhile(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between our reading and our writing, twice; then with our plugin in it."""
    path, versions = write("10-a.conflist"), [f"{LIST.strip()}{' ' * number}" for number in range(1, 3)]
    exchange = module.exchange

    def late(one: Path, other: Path) -> None:
        if versions and one.exists():
            beside = tmp_path / "other-agent"
            beside.write_text(versions.pop(0))
            beside.replace(path)
        exchange(one, other)

    monkeypatch.setattr(module, "exchange", late)
    assert put_in(tmp_path, OURS)
    assert contents(tmp_path) == {"10-a.conflist": LIST.strip().replace("}]", '},{"type": "kproxy-ebpf-cni"}]') + "  "}


def test_a_list_that_goes_meanwhile(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write("10-a.conflist")
    before = path.read_bytes()
    path.unlink()
    assert not replace(path, before, b"{}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_can_not_exchange_names(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(one: Path, other: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(module, "exchange", refuse)
    path = write("10-a.conflist")
    assert not replace(path, b"something else", b"{}")
    assert put_in(tmp_path, OURS)
    assert has_plugin(path.read_text())
    assert len(contents(tmp_path)) == 1


def test_readers_see_one_list_or_the_other(tmp_path: Path, write: Callable[..., Path]) -> None:
    path, ends, seen = write("10-a.conflist"), threading.Event(), set[int]()

    def read() -> None:
        while not ends.is_set():
            seen.add(len(json.loads(path.read_text())["plugins"]))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        put_in(tmp_path, OURS)
        take_out(tmp_path)
    ends.set()
    reader.join()
    assert seen <= {1, 2}
    assert contents(tmp_path) == {"10-a.conflist": LIST}


def test_two_writers_lose_nothing(tmp_path: Path, write: Callable[..., Path]) -> None:
    """Another agent counts in the file, always from what it wrote last; whatever we do, its last word is there."""
    path, rounds = write("10-a.conflist"), 300

    def count() -> None:
        for number in range(rounds + 1):
            (beside := tmp_path / "agent").write_text(LIST.replace('"a"', f'"a{number}"'))
            beside.replace(path)

    agent = threading.Thread(target=count)
    agent.start()
    while agent.is_alive():
        with suppress(OSError):  # written all the time
            put_in(tmp_path, OURS)
    agent.join()
    put_in(tmp_path, OURS)
    assert json.loads(path.read_text())["name"] == f"a{rounds}"
    assert has_plugin(path.read_text())
