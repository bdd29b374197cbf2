from __future__ import annotations

from pathlib import Path

import pytest

from kproxy_ebpf.datapath.generations import toolchain
from kproxy_ebpf.datapath.generations.object_file import UnfitError
from kproxy_ebpf.datapath.generations.toolchain import HEADERS, fingerprint, headers_fingerprint, require_same_tools
from kproxy_ebpf.errors import NodeError


@pytest.fixture
def headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The generated part of a tree of headers, which is this node's."""
    folder = tmp_path / "headers/include/generated"
    (folder / "uapi/linux").mkdir(parents=True)
    (folder / "uapi/linux/version.h").write_text("#define LINUX_VERSION_CODE 393472")
    (folder / "utsrelease.h").write_text('#define UTS_RELEASE "6.1.0"')
    monkeypatch.setattr(toolchain, "find_headers", lambda: (tmp_path / "headers",))
    monkeypatch.setattr(toolchain, "has_bcc", lambda: True)
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Path:
    file = tmp_path / "libLLVM-14.so.1"
    file.write_bytes(bytes(5000))
    return file


@pytest.fixture
def tools(headers: Path, library: Path) -> dict[str, str]:
    return {str(library): fingerprint(library), HEADERS: headers_fingerprint([headers.parents[1]])}


def test_the_same_tools(tools: dict[str, str]) -> None:
    require_same_tools(tools)


@pytest.mark.parametrize("content", [bytes(5001), b"\1" + bytes(4999)], ids=["size", "build id"])
def test_another_compiler(tools: dict[str, str], library: Path, content: bytes) -> None:
    library.write_bytes(content)
    with pytest.raises(UnfitError, match=r"another libLLVM-14\.so\.1"):
        require_same_tools(tools)


def test_a_compiler_that_is_gone_while_there_is_another(tools: dict[str, str], library: Path) -> None:
    library.unlink()
    with pytest.raises(UnfitError, match="another libLLVM"):
        require_same_tools(tools)


@pytest.mark.parametrize("name", ["uapi/linux/version.h", "utsrelease.h", "autoconf.h"])
def test_other_headers(tools: dict[str, str], headers: Path, name: str) -> None:
    (headers / name).write_text("another")
    with pytest.raises(UnfitError, match="another kernel headers"):
        require_same_tools(tools)


def test_merged_headers_are_those_that_they_were_merged_from(headers: Path, tmp_path: Path) -> None:
    part = tmp_path / "part/include/generated"
    part.mkdir(parents=True)
    (headers / "utsrelease.h").rename(part / "utsrelease.h")
    parts = headers_fingerprint([headers.parents[1], part.parents[1]])
    (part / "utsrelease.h").rename(headers / "utsrelease.h")
    assert headers_fingerprint([headers.parents[1]]) == parts


def test_where_nothing_else_could_be_compiled_any_tools_will_do(
    tools: dict[str, str], library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_headers() -> tuple[Path, ...]:
        raise NodeError("none")

    monkeypatch.setattr(toolchain, "find_headers", no_headers)
    require_same_tools(tools)
    library.unlink()
    monkeypatch.setattr(toolchain, "has_bcc", lambda: False)
    require_same_tools(tools)
