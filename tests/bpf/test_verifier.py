"""How far the verifier has to walk: its limit is 1,000,000 instructions, and other kernels walk otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kproxy_ebpf.datapath.generations import load
from kproxy_ebpf.datapath.generations.bpffs import root
from kproxy_ebpf.datapath.generations.generation import ensure
from kproxy_ebpf.datapath.generations.sources import Constants
from kproxy_ebpf.linux.bpf import Program
from kproxy_ebpf.linux.bpf_load import load_program, steps_of

MOST = 200_000


def test_every_program_is_far_from_the_limit(
    bpffs: Path, small: Constants, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: dict[str, list[int]] = {}

    def counted(name: str, *told: Any) -> Program:
        steps.setdefault(name, []).append(steps_of(name, *told))
        return load_program(name, *told)

    monkeypatch.setattr(load, "load_program", counted)
    ensure(bpffs, small)
    assert root(bpffs).exists()
    with capsys.disabled():
        for name, counts in sorted(steps.items(), key=lambda item: -max(item[1])):
            print(f"\n{name:24} {' '.join(f'{count:>8}' for count in sorted(counts))}", end="")
    assert {name: counts for name, counts in steps.items() if max(counts) > MOST} == {}
    assert min(min(counts) for counts in steps.values()) > 0
