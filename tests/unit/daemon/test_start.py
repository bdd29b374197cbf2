"""The daemon's first moment."""

from __future__ import annotations

import subprocess
import sys

MODULES_FOR_LATER = {"aiohttp", "kproxy_ebpf.daemon.core", "pydantic", "pyroute2"}


def test_the_daemon_may_open_as_many_files_as_it_is_allowed_to() -> None:
    code = (
        "import resource as r; from kproxy_ebpf.daemon.start import _raise_file_limit as up; hard = 4096;"
        "r.setrlimit(r.RLIMIT_NOFILE, (1024, hard)); up(); print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"4096 4096\n"


def test_what_takes_long_to_import_is_left_until_the_generation_is_being_built() -> None:
    code = "import sys, kproxy_ebpf.daemon; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert not MODULES_FOR_LATER & set(loaded.split())
