from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kproxy_ebpf.datapath.generations import kept
from kproxy_ebpf.datapath.generations.kept import KEPT_FILES, digest_of, find, keep
from kproxy_ebpf.datapath.generations.object_file import Code, Compiled, ObjectFile, UnfitError, write
from kproxy_ebpf.datapath.generations.sources import Constants, KernelFeatures, SourceText

DIGEST = digest_of({4: "four", 6: "six"})
OBJECTS = ObjectFile(DIGEST, {}, {4: Compiled("GPL", b"", {}, {"from_pod": Code(bytes(8), {})})})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nothing is yet. The tools that compiled are not looked at."""
    monkeypatch.setattr(kept, "require_same_tools", lambda _: None)
    return tmp_path / "kept"


def file_in(folder: Path, digest: str = DIGEST) -> Path:
    return folder / f"{digest[:16]}.programs"


def refused(folder: Path) -> str:
    """What the log says where nothing is loaded."""
    with capture_logs() as logs:
        assert find([folder], DIGEST) is None
    (entry,) = logs
    assert entry["log_level"] == "warning"
    return str(entry["event"])


def test_what_is_kept_is_found(folder: Path) -> None:
    with capture_logs() as logs:
        assert find([folder], DIGEST) is None
        keep(folder, OBJECTS)
        assert find([folder.parent / "nothing", folder], DIGEST) == OBJECTS
        assert find([folder], digest_of({4: "other"})) is None
    assert logs == [], "nothing is wrong with a folder that has no such file"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [(path.name, path.stat().st_mode & 0o777) for path in folder.iterdir()] == [(file_in(folder).name, 0o600)]


def test_the_digest_is_of_all_that_is_compiled() -> None:
    texts = {4: "four", 6: "six"}
    digests = {
        digest_of(texts),
        digest_of(texts, "aarch64"),
        digest_of(texts, "x86_64"),
        digest_of(texts | {6: "four"}),
    }
    assert len(digests) == 3, "this machine's is one of the two"
    source = SourceText("text", Constants())
    assert digest_of(source.texts(KernelFeatures())) != digest_of(source.texts(KernelFeatures(lists_sockets=True)))


def test_a_file_of_another_architecture_is_not_loaded(folder: Path) -> None:
    foreign = digest_of({4: "four", 6: "six"}, "another")
    keep(folder, replace(OBJECTS, digest=foreign))
    assert find([folder], DIGEST) is None
    file_in(folder, foreign).rename(file_in(folder))
    assert "processor" in refused(folder)


def test_a_file_of_zero_bytes_is_not_loaded(folder: Path) -> None:
    keep(folder, OBJECTS)
    file_in(folder).write_bytes(b"")
    assert refused(folder).endswith("is empty")


def test_the_next_folder_serves_where_the_first_is_damaged(folder: Path) -> None:
    keep(folder, OBJECTS)
    other = folder.parent / "shipped"
    keep(other, OBJECTS)
    file_in(folder).write_bytes(write(OBJECTS)[:-1])
    with capture_logs() as logs:
        assert find([folder, other], DIGEST) == OBJECTS
    assert "is damaged" in logs[0]["event"]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to(folder: Path, mode: int) -> None:
    keep(folder, OBJECTS)
    folder.chmod(mode)
    assert f"is in a folder that other users may write (mode {mode:04o})" in refused(folder)
    with pytest.raises(UnfitError, match="other users may write"):
        keep(folder, OBJECTS)


def test_a_folder_of_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(folder, OBJECTS)
    owner = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    assert f"is in a folder that belongs to another user ({owner})" in refused(folder)


def test_a_file_that_others_may_write(folder: Path) -> None:
    keep(folder, OBJECTS)
    file_in(folder).chmod(0o606)
    assert "other users may write" in refused(folder)


def test_links_are_not_followed(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    keep(elsewhere, OBJECTS)
    folder.symlink_to(elsewhere)
    assert refused(folder)
    folder.unlink()
    folder.mkdir(mode=0o700)
    file_in(folder).symlink_to(file_in(elsewhere))
    assert refused(folder)


def test_the_newest_few_stay(folder: Path) -> None:
    digests = [digest_of({4: str(number)}) for number in range(KEPT_FILES + 2)]
    for number, digest in enumerate(digests[:-1]):
        keep(folder, replace(OBJECTS, digest=digest))
        os.utime(file_in(folder, digest), (number, number))
    assert find([folder], digests[1]) is not None, "what is used counts as new"
    (folder / "of-somebody-else").touch()
    keep(folder, replace(OBJECTS, digest=digests[-1]))
    stay = {file_in(folder, digest).name for digest in (digests[1], *digests[3:])}
    assert {path.name for path in folder.iterdir()} == stay | {"of-somebody-else"}


def test_what_a_killed_writer_left_goes(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    old, young = folder / "new-1.programs", folder / "new-2.programs"
    old.touch()
    young.touch()
    os.utime(old, (1, 1))
    keep(folder, OBJECTS)
    assert {path.name for path in folder.iterdir()} == {young.name, file_in(folder).name}
