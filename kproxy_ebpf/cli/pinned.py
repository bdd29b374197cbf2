"""What is pinned on this node, and what the daemon has written down of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kproxy_ebpf.cli.rows import Names
from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.errors import KproxyError
from kproxy_ebpf.observe.state import read_status

if TYPE_CHECKING:
    from kproxy_ebpf.datapath.generations.generation import Generation


class NothingPinnedError(KproxyError):
    """There are no maps of ours."""

    exit_code = os.EX_NOINPUT


def generation_in_force(bpffs: Path) -> Generation:
    """What is pinned in `bpffs`. Raises NothingPinnedError."""
    from kproxy_ebpf.datapath.generations.generation import current

    generation = current(bpffs)
    if generation is None:
        raise NothingPinnedError(f"nothing of ours is pinned in {bpffs}: start the daemon, or name its --bpffs")
    return generation


def service_names(bpffs: Path) -> Mapping[int, Names]:
    """Names by service id of each family, from what the daemon wrote last."""
    names = read_status(bpffs).get("services", {})
    return {family: names.get(str(family), {}) for family in FAMILIES}
