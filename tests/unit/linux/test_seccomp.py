"""bpf(2) answered by the process that calls it, also where a container runtime's filter refuses it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from kproxy_ebpf.linux.seccomp import MACHINES

CALL = """
import ctypes, errno
from kproxy_ebpf.linux import seccomp

libc = ctypes.CDLL(None, use_errno=True)

def bpf(*arguments):
    return libc.syscall(seccomp.MACHINES["{machine}"].bpf, *map(ctypes.c_long, arguments)), ctypes.get_errno()

def answer(arguments):
    if arguments[0] == 99:
        raise OSError(errno.EXDEV, "not here")
    return sum(arguments)

{before}
seccomp.answer_bpf(answer)
print(bpf(1, 2, 3, 4, 5, 1000)[0], bpf(99), libc.getpid() > 0)
"""
REFUSED = """
trap, seccomp._TRAP = seccomp._TRAP, 0x00050001
seccomp._trap(seccomp.MACHINES["{machine}"])
seccomp._TRAP = trap
"""
"""A filter from before that gives the error 1, as those of container runtimes do."""


@pytest.mark.skipif(platform.machine() not in MACHINES, reason="no system call numbers for this machine")
@pytest.mark.parametrize("before", ["", REFUSED], ids=["free", "refused by a filter from before"])
def test_every_argument_and_the_result_pass(before: str) -> None:
    machine = platform.machine()
    code = CALL.format(machine=machine, before=before.format(machine=machine))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["1015", "(-1,", "18)", "True"]
