"""The kernel's headers: where they are found, and two trees merged into one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy_ebpf.errors import NodeError
from kproxy_ebpf.linux.headers import find_headers, headers_tree


@pytest.fixture
def usr_src(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    for version in ("6.1.0-9", "6.1.0-10"):
        for flavour, names in (("common", ("include/linux", "arch/x86")), ("amd64", ("include/generated", "arch"))):
            for name in names:
                (tmp_path / f"linux-headers-{version}-{flavour}" / name).mkdir(parents=True)
                (tmp_path / f"linux-headers-{version}-{flavour}" / name / f"{flavour}.h").write_text(version)
    return tmp_path


def test_debian_splits_headers_in_two(usr_src: Path) -> None:
    common, own = find_headers(usr_src)
    assert (common.name, own.name) == ("linux-headers-6.1.0-10-common", "linux-headers-6.1.0-10-amd64")


def test_merged_headers_show_both(usr_src: Path, tmp_path: Path) -> None:
    merged = headers_tree(usr_src, tmp_path / "cache")
    for path in ("include/linux/common.h", "include/generated/amd64.h", "arch/x86/common.h", "arch/amd64.h"):
        assert (merged / path).read_text() == "6.1.0-10", path
    assert (merged / "include/linux").is_symlink()


def test_the_merged_view_is_made_once(usr_src: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    merged = headers_tree(usr_src, cache)
    made = merged.stat().st_ino
    assert headers_tree(usr_src, cache).stat().st_ino == made
    assert list(cache.iterdir()) == [merged]
    (merged / "include/linux").unlink()
    (merged / "include/linux").symlink_to("/nowhere")
    assert (headers_tree(usr_src, cache) / "include/linux/common.h").exists(), "made again where headers went away"


def test_one_tree_may_be_named(usr_src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = usr_src / "linux-headers-6.1.0-9-common"
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tree))
    assert find_headers(usr_src) == (tree,)
    assert headers_tree(usr_src, usr_src / "cache") == tree
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(usr_src))
    with pytest.raises(NodeError, match="include/linux is missing"):
        find_headers(usr_src)


def test_no_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    monkeypatch.setattr("kproxy_ebpf.linux.headers._MODULES", tmp_path)
    with pytest.raises(NodeError, match="apt install linux-headers-"):
        find_headers(tmp_path)
