"""The C sources as they are built: includes spliced in, constants before them, a digest of both."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import pytest

from kproxy_ebpf.datapath.generations.sources import (
    Constants,
    KernelFeatures,
    SourceText,
    kernels,
    read_source,
    source_folder,
)
from kproxy_ebpf.errors import NodeError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bpf_src"
    folder.mkdir()
    (folder / "main.c").write_text('#include <stddef.h>\n#include "a.h"\n#include "sub/b.h"\nint last = __LINE__;\n')
    (folder / "a.h").write_text('int a = 1;\n  #  include "sub/b.h"\nint a_last = __LINE__;\n')
    (folder / "sub").mkdir()
    (folder / "sub/b.h").write_text("int b = __LINE__;\n")
    return folder


def test_quoted_includes_are_spliced_once(folder: Path) -> None:
    text = read_source(folder, Constants()).text
    assert text.count("int b") == 1
    assert text.index("int b") < text.index("int a_last") < text.index("int last")
    assert "#include <stddef.h>" in text
    assert not re.search(r'#\s*include\s*"', text)


def test_line_numbers_are_those_of_the_files(folder: Path) -> None:
    source = read_source(folder, Constants())
    command = ["gcc", "-E", "-P", "-x", "c", "-"]
    output = subprocess.run(command, input=source.text, capture_output=True, text=True, check=True).stdout
    assert [f"{name} = {line};" in output for name, line in (("b", 1), ("a_last", 3), ("last", 4))] == [True] * 3
    (folder / "sub/b.h").write_text("\nint b = oops;\n")
    broken = read_source(folder, Constants()).text
    child = subprocess.run([*command[:1], *command[3:]], input=broken, capture_output=True, text=True, check=False)
    assert "bpf_src/sub/b.h:2:" in child.stderr


def test_the_digest_names_text_and_constants(folder: Path) -> None:
    source = read_source(folder, Constants())
    assert source.digest == read_source(folder, Constants()).digest
    assert re.fullmatch(r"[0-9a-f]{16}", source.digest), "bpffs allows no dots"
    digests = {source.digest, replace(source, text="").digest}
    for number, field in enumerate(fields(Constants)):
        digests.add(replace(source, constants=replace(Constants(), **{field.name: 1000 + number})).digest)
    assert len(digests) == 2 + len(fields(Constants))


@pytest.mark.parametrize(("family", "words"), [(4, 1), (6, 4)])
def test_constants_stand_before_the_text(family: int, words: int) -> None:
    source = SourceText("rest", Constants(flows_max=7, pod_links_max=9))
    text = source.for_family(family, KernelFeatures(refuses_at_connect=True))
    *defines, last = text.splitlines()
    assert last == "rest"
    values = dict(line.removeprefix("#define ").split(" ", 1) for line in defines)
    assert values["ADDRESS_WORDS"] == str(words)
    assert values["IP_FAMILY"] == str(family)
    assert (values["REFUSES_AT_CONNECT"], values["LISTS_SOCKETS"]) == ("1", "0")
    assert values["POD_LINKS_MAX"] == "9"
    assert source.texts(KernelFeatures(refuses_at_connect=True))[family] == text


def test_nodes_with_tables_of_other_sizes_run_the_same_programs() -> None:
    sizes = {field.name: 7 for field in fields(Constants) if field.name != "pod_links_max"}
    texts = [SourceText("", constants).texts(KernelFeatures()) for constants in (Constants(), Constants(**sizes))]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("release", [(5, 10), (5, 11), (5, 12), (5, 15), (5, 18), (5, 19), (6, 1), (7, 0)])
def test_an_image_has_programs_for_every_kernel(monkeypatch: pytest.MonkeyPatch, release: tuple[int, int]) -> None:
    for module in ("linux.kernel", "datapath.generations.sources"):
        monkeypatch.setattr(f"kproxy_ebpf.{module}.kernel_version", lambda: release)
    for has_btf, has_mptcp in product((False, True), repeat=2):
        monkeypatch.setattr("kproxy_ebpf.linux.kernel._BTF", Path("/") if has_btf else Path("/nowhere"))
        monkeypatch.setattr("kproxy_ebpf.linux.kernel._MPTCP", Path("/") if has_mptcp else Path("/nowhere"))
        assert KernelFeatures.here() in kernels()
    assert len(kernels()) == len(set(kernels())) == 7


@pytest.mark.parametrize("feature", [field.name for field in fields(KernelFeatures)])
def test_what_a_kernel_lacks_makes_another_text(feature: str) -> None:
    source = SourceText("", Constants())
    assert source.texts(KernelFeatures(**{feature: True})) != source.texts(KernelFeatures())


def test_every_constant_is_used_by_the_sources() -> None:
    text = read_source(source_folder(), Constants()).text
    for name in (*(field.name.upper() for field in fields(Constants)), "IP_FAMILY", "ADDRESS_WORDS"):
        assert re.search(rf"\b{name}\b", text), name


def test_where_the_sources_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (source_folder() / "maps.h").exists()
    monkeypatch.setenv("KPROXY_BPF_SOURCE", str(folder))
    assert source_folder() == folder
    monkeypatch.setenv("KPROXY_BPF_SOURCE", "/nowhere")
    with pytest.raises(NodeError, match="/nowhere"):
        source_folder()
