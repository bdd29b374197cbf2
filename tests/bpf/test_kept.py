"""Compiled programs on disk: what is loaded from there, and what becomes of a node where that can't be done."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.datapath.generations.build import Workshop
from kproxy_ebpf.datapath.generations.compile import Compiler, StoppedError
from kproxy_ebpf.datapath.generations.generation import Generation, ensure, remove_all
from kproxy_ebpf.datapath.generations.kept import default_folder, digest_of, find, keep
from kproxy_ebpf.datapath.generations.object_file import Code, ObjectFile
from kproxy_ebpf.datapath.generations.sources import Constants, KernelFeatures, read_source, source_folder
from kproxy_ebpf.errors import LoadError

RETURNS_NOTHING = Code(bytes((0x95, *bytes(7))), {})  # the verifier refuses: r0 is not set


@pytest.fixture(scope="module")
def objects(generation: Generation, small: Constants) -> ObjectFile:
    """What the compiler makes of the sources."""
    digest = digest_of(read_source(source_folder(), small).texts(KernelFeatures.here()))
    found = find([default_folder()], digest)
    assert found is not None, "kept when the generation was built"
    return found


class ReadyMade(Compiler):
    """Takes no time."""

    def __init__(self, objects: ObjectFile) -> None:
        super().__init__()
        self.objects = objects
        self.compiled = 0

    def compile(self, texts: Mapping[int, str]) -> ObjectFile:
        assert texts.keys() == {*FAMILIES}
        self.compiled += 1
        return self.objects


class Node:
    """Whose starts are counted. `sentences`: the warnings of the last one."""

    def __init__(self, bpffs: Path, constants: Constants, kept: Path, objects: ObjectFile) -> None:
        self.bpffs, self.constants, self.kept = bpffs, constants, kept
        self.compiler = ReadyMade(objects)
        self.sentences: list[str] = []

    @property
    def file(self) -> Path:
        return self.kept / f"{self.compiler.objects.digest[:16]}.programs"

    def start(self) -> int:
        """Build everything; return how often that compiled."""
        remove_all(self.bpffs)
        before = self.compiler.compiled
        with capture_logs() as logs:
            generation = ensure(self.bpffs, self.constants, workshop=Workshop(self.kept, self.compiler))
        self.sentences = [" ".join(map(str, entry.values())) for entry in logs if entry["log_level"] == "warning"]
        assert generation.is_complete
        assert len(list((generation.path / "programs").iterdir())) == sum(
            len(compiled.programs) for compiled in self.compiler.objects.families.values()
        )
        return self.compiler.compiled - before


@pytest.fixture
def node(bpffs: Path, small: Constants, tmp_path: Path, objects: ObjectFile) -> Node:
    return Node(bpffs, small, tmp_path / "kept", objects)


def test_the_second_start_needs_no_compiler(node: Node) -> None:
    assert (node.start(), node.start()) == (1, 0)
    assert node.sentences == []
    shutil.rmtree(node.kept)
    assert node.start() == 1


def truncate(node: Node) -> None:
    node.file.write_bytes(node.file.read_bytes()[:1000])


def flip_a_bit(node: Node) -> None:
    data = bytearray(node.file.read_bytes())
    data[len(data) // 2] ^= 1
    node.file.write_bytes(data)


def exchange_for_foreign(node: Node) -> None:
    foreign = replace(node.compiler.objects, digest=digest_of({}, "another processor"))
    keep(node.kept, foreign)
    (node.kept / f"{foreign.digest[:16]}.programs").rename(node.file)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda node: node.file.write_bytes(b""), "is empty"),
        (truncate, "is damaged"),
        (flip_a_bit, "is damaged"),
        (exchange_for_foreign, "other programs"),
        (lambda node: node.file.chmod(0o666), "other users may write"),
    ],
)
def test_a_file_that_is_not_what_was_written(node: Node, spoil: Callable[[Node], object], words: str) -> None:
    node.start()
    spoil(node)
    assert node.start() == 1
    (sentence,) = node.sentences
    assert words in sentence
    assert str(node.file) in sentence
    assert (node.start(), node.sentences) == (0, []), "it was written anew"


def test_a_folder_that_others_may_write_to_is_neither_read_nor_written(node: Node) -> None:
    node.start()
    written = node.file.stat().st_mtime_ns
    node.kept.chmod(0o777)
    assert (node.start(), node.start()) == (1, 1)
    assert all("other users may write" in sentence for sentence in node.sentences)
    assert node.file.stat().st_mtime_ns == written


def test_a_folder_of_another_user(node: Node) -> None:
    node.start()
    shutil.chown(node.kept, 1234)
    assert node.start() == 1
    assert "belongs to another user (1234)" in node.sentences[0]


@pytest.fixture
def tiny(node: Node) -> Iterator[Node]:
    """A node whose folder is a file system of one page."""
    node.kept.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=0700", "tmpfs", node.kept], check=True)
    yield node
    subprocess.run(["umount", node.kept], check=True)


def test_a_full_disk(tiny: Node) -> None:
    assert tiny.start() == 1
    (sentence,) = tiny.sentences
    assert "No space left on device" in sentence
    assert str(tiny.kept) in sentence
    assert list(tiny.kept.iterdir()) == [], "half a file is no file"


def test_a_read_only_disk(tiny: Node) -> None:
    subprocess.run(["mount", "-o", "remount,ro", tiny.kept], check=True)
    assert tiny.start() == 1
    (sentence,) = tiny.sentences
    assert "Read-only file system" in sentence


def test_what_is_on_a_read_only_disk_is_loaded(tiny: Node) -> None:
    subprocess.run(["mount", "-o", "remount,size=4m", tiny.kept], check=True)
    keep(tiny.kept, tiny.compiler.objects)
    subprocess.run(["mount", "-o", "remount,ro", tiny.kept], check=True)
    assert (tiny.start(), tiny.sentences) == (0, [])


def refused_by_the_kernel(objects: ObjectFile) -> ObjectFile:
    """As if the kernel were another than when it was compiled."""
    other = objects.families[6]
    return replace(
        objects,
        families={
            **objects.families,
            6: replace(other, programs={**other.programs, "to_pod": RETURNS_NOTHING}),
        },
    )


def test_a_kernel_that_refuses_what_is_kept(node: Node) -> None:
    good = node.compiler.objects
    keep(node.kept, refused_by_the_kernel(good))
    assert node.start() == 1
    (sentence,) = node.sentences
    assert "compiled anew" in sentence
    assert "to_pod" in sentence
    assert (node.start(), node.sentences) == (0, [])


def test_a_kernel_that_refuses_what_is_compiled_anew_as_well(node: Node, bpffs: Path) -> None:
    node.compiler.objects = refused_by_the_kernel(node.compiler.objects)
    keep(node.kept, node.compiler.objects)
    with pytest.raises(LoadError, match="to_pod"):
        node.start()
    assert node.compiler.compiled == 1, "once"
    assert list(bpffs.glob("kproxy-ebpf/new-*")) == []


def test_stopping_while_it_compiles(bpffs: Path, small: Constants, tmp_path: Path) -> None:
    """At once, and nothing is left: neither processes nor pins."""
    begun, ended = threading.Event(), threading.Event()
    compiler = Compiler(lambda begins: (begun if begins else ended).set())
    failures: list[BaseException] = []

    def build() -> None:
        try:
            ensure(bpffs, small, workshop=Workshop(tmp_path / "kept", compiler))
        except LoadError as failure:
            failures.append(failure)

    thread = threading.Thread(target=build)
    thread.start()
    assert begun.wait(30)
    while len(compiler.running) < len(FAMILIES):
        time.sleep(0.01)
    pids = compiler.running
    began = time.monotonic()
    compiler.stop()
    thread.join(10)
    assert time.monotonic() - began < 1
    assert ended.is_set()
    assert [type(failure) for failure in failures] == [StoppedError]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert list(bpffs.glob("kproxy-ebpf/new-*")) == []
