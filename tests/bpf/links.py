"""Links in a network namespace of a test's own, and what is attached to them."""

from __future__ import annotations

import subprocess

from kproxy_ebpf.datapath.attach.tc import Method
from kproxy_ebpf.datapath.generations.generation import Generation

METHODS = [Method.TCX, Method.CLSACT]


def ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, capture_output=True)


def tc(*arguments: str) -> str:
    return subprocess.run(["tc", *arguments], check=True, capture_output=True, text=True).stdout


def filters(device: str = "veth0") -> list[str]:
    return [
        word
        for hook in ("ingress", "egress")
        for word in tc("filter", "show", "dev", device, hook).split()
        if word.startswith("kproxy-ebpf/")
    ]


def pins(generation: Generation, ifindex: int) -> list[str]:
    names = (pin.name for pin in (generation.root / "links").iterdir())
    return sorted(name.removeprefix(f"{ifindex}-") for name in names if name.startswith(f"{ifindex}-"))
