"""What `check` says of a node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kproxy_ebpf.cni.conflist import PLUGIN, entry_of
from kproxy_ebpf.cni.folder import put_in
from kproxy_ebpf.datapath import checks
from kproxy_ebpf.errors import NodeError


def test_this_node() -> None:
    found = {check.name: check for check in checks.check_node()}
    assert all(check.detail for check in found.values())
    assert all(check.ok for check in found.values() if check.required)
    assert list(found)[:2] == ["root", "kernel"]


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert not {check.name: check.ok for check in checks.check_node()}["root"]


@pytest.mark.parametrize(
    ("release", "kernel", "tcx", "redirect"),
    [
        ("5.9.1-generic", False, False, False),
        ("5.10.0-21-amd64", True, False, False),
        ("5.15.0", True, False, True),
        ("6.6.3", True, True, True),
        ("10.0-rc1", True, True, True),
    ],
)
def test_kernels(monkeypatch: pytest.MonkeyPatch, release: str, kernel: bool, tcx: bool, redirect: bool) -> None:
    version = checks.kernel_version(release)
    monkeypatch.setattr(checks, "kernel_version", lambda: version)
    found = {check.name: check for check in checks.check_node()}
    assert (found["kernel"].ok, found["tcx"].ok, found["redirect"].ok) == (kernel, tcx, redirect)
    assert not found["tcx"].required


def refuse() -> bool:
    raise PermissionError(1, "IPsec policies can't be read: Operation not permitted")


@pytest.mark.parametrize(
    ("answer", "detail"), [(lambda: True, "the host has policies"), (refuse, "can't be read")], ids=["there", "unknown"]
)
def test_ipsec_policies_are_told(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], bool], detail: str) -> None:
    monkeypatch.setattr(checks, "has_policies", answer)
    check = {check.name: check for check in checks.check_node()}["ipsec"]
    assert (check.ok, check.required) == (False, False)
    assert detail in check.detail
    assert "other nodes" in check.consequence


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_headers() -> tuple[Path, ...]:
        raise NodeError("no kernel headers: apt install linux-headers-amd64")

    monkeypatch.setattr(checks, "find_headers", no_headers)
    monkeypatch.setattr("sys.executable", "/bin/false")
    monkeypatch.setenv("KPROXY_BPF_SOURCE", str(tmp_path))
    found = {check.name: check for check in checks.check_node(tmp_path)}
    assert {name for name, check in found.items() if not check.ok} >= {"headers", "bcc", "sources", "bpffs"}
    assert "python3-bpfcc" in found["bcc"].consequence
    assert "linux-headers-amd64" in found["headers"].detail
    assert not found["bpffs"].required, "run mounts it"


def test_what_the_next_start_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {check.name: check for check in checks.check_node(tmp_path, tmp_path)}
    assert (found["programs"].ok, found["programs"].required) == (False, False)
    assert found["programs"].detail == f"not compiled in {tmp_path}"
    assert "compiles" in found["programs"].consequence
    assert found["bcc"].required
    assert found["headers"].required
    monkeypatch.setattr(checks, "find", lambda folders, *_: folders[0] == tmp_path)
    found = {check.name: check for check in checks.check_node(tmp_path, tmp_path)}
    assert (found["programs"].ok, found["programs"].detail) == (True, f"compiled, in {tmp_path}")
    assert not found["bcc"].required
    assert not found["headers"].required


def test_why_compiled_programs_will_not_do_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    found = {check.name: check for check in checks.check_node(tmp_path, tmp_path)}
    assert "other users may write" in found["programs"].detail


def test_where_cgroup2_is(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("cgroup /a cgroup rw 0 0\ncgroup2 /sys/my\\040groups cgroup2 rw 0 0\n")
    assert checks.cgroup2_mount(mounts) == Path("/sys/my groups")
    mounts.write_text("proc /proc proc rw 0 0\n")
    assert checks.cgroup2_mount(mounts) is None


def test_the_cni_chain(tmp_path: Path) -> None:
    conf, programs = tmp_path / "net.d", tmp_path / "bin"
    conf.mkdir()
    programs.mkdir()

    def look() -> checks.Check:
        return checks.cni_chain(conf, programs)

    assert (look().ok, look().required) == (False, False)
    assert "no CNI configuration yet" in look().detail
    (conf / "10-a.conflist").write_text('{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "ptp"}]}')
    assert "is not in" in look().detail
    put_in(conf, entry_of())
    assert not look().ok
    assert "no pod of this node can start" in look().consequence
    (programs / PLUGIN).touch(0o755)
    assert look().ok
    assert look().detail == f"{PLUGIN} is in {conf}/10-a.conflist"
