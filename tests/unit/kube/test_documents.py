"""Files that are no manifests, by mistake or on purpose: refused in one short line, at little cost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kproxy_ebpf.kube.documents import UnreadableFileError, read_documents

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(f'*{before}' for _ in range(9))}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {k1: 1, k2: 2}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join(f'*{before}' for _ in range(9))}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "".join(f"k{i}: &k{i} [{f'*k{i - 1}' if i else ''}]\n" for i in range(5000))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("kind: !!bool maybe", "not YAML: KeyError: 'maybe'"),
        ("kind: !!timestamp now", "not YAML: AttributeError"),
        ("kind: !!float x", "could not convert string to float"),
        ("kind: !!python/object:os.system x", "line 1: could not determine a constructor"),
        ("[" * 3000, "nested more than 100 deep"),
        (BOMB, "its aliases stand for more than 100000 values"),
        (MERGE_BOMB, "its aliases stand for more than 100000 values"),
        (
            "".join(f"k{i}: &k{i} [{f'*k{i - 1}' if i else ''}]\n" for i in range(5000)),
            "its aliases stand for more than 111664 values",
        ),
    ],
)
def test_what_is_no_manifest_is_refused_at_once(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(content)
    started = time.process_time()
    with pytest.raises(UnreadableFileError) as refused:
        read_documents(file)
    assert time.process_time() - started < 2
    assert str(refused.value).startswith(reason)
    assert len(str(refused.value)) <= 300


def test_aliases_in_good_faith_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("labels: &labels {app: web}\nother:\n  labels: *labels\n  more: {<<: *labels, tier: front}\n")
    (document,) = read_documents(file)
    assert document.content["other"] == {"labels": {"app": "web"}, "more": {"app": "web", "tier": "front"}}
