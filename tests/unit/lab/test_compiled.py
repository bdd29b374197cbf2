from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kproxy_ebpf.datapath.generations import kept
from kproxy_ebpf.datapath.generations.compile import Compiler
from kproxy_ebpf.datapath.generations.kept import digest_of
from kproxy_ebpf.datapath.generations.object_file import Code, Compiled, ObjectFile
from kproxy_ebpf.lab import compiled
from kproxy_ebpf.lab.compiled import compile_once
from kproxy_ebpf.lab.exclusive import exclusive


class SlowCompiler(Compiler):
    """Is not done before `may_end`. `began` is set by the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.began, self.may_end = threading.Event(), threading.Event()

    def compile(self, texts: Mapping[int, str]) -> ObjectFile:
        self.calls += 1
        self.began.set()
        assert self.may_end.wait(5)
        code = {"from_pod": Code(bytes(8), {})}
        return ObjectFile(digest_of(texts), {}, {family: Compiled("GPL", b"", {}, code) for family in texts})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nothing is yet. Neither the tools that compiled are looked at nor this machine's kernel."""
    monkeypatch.setattr(kept, "require_same_tools", lambda _: None)
    monkeypatch.setattr(compiled.KernelFeatures, "here", classmethod(lambda cls: cls(True, True)))
    return tmp_path / "kept"


def test_what_several_want_is_compiled_once(folder: Path) -> None:
    compiler = SlowCompiler()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(compile_once, folder, compiler)
        assert compiler.began.wait(5)
        others = [pool.submit(compile_once, folder, compiler) for _ in range(3)]
        compiler.may_end.set()
        for each in (first, *others):
            each.result(5)
    assert compiler.calls == 1
    assert len(list(folder.glob("*.programs"))) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


def test_one_at_a_time_is_in_a_block_for_a_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        with exclusive(tmp_path):
            inside: list[str] = []

            def enter() -> None:
                with exclusive(tmp_path):
                    inside.append("second")

            second = pool.submit(enter)
            with exclusive(tmp_path.parent):
                inside.append("of another folder")
            assert inside == ["of another folder"]
        second.result(5)
    assert inside == ["of another folder", "second"]
