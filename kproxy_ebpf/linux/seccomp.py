"""System calls of this process answered by this process: what a compiler asks of the kernel can be told without it.

Linux's seccomp lets a process without privileges trap chosen calls of its own: each becomes a SIGSYS, whose handler
reads the arguments from the interrupted thread's registers and puts the result there (seccomp(2), SECCOMP_RET_TRAP).
Of several filters the strictest answer counts, and a trap is stricter than the error that container runtimes have for
bpf(2): so this works where an image is built, too. A listener (SECCOMP_RET_USER_NOTIF) would never be asked there.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Callable
from dataclasses import dataclass

from kproxy_ebpf.errors import NodeError

Answer = Callable[[tuple[int, ...]], int]
"""From the six arguments of a call to its result. An OSError raised becomes the call's own."""

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_TRAP, _ALLOW = 0x00030000, 0x7FFF0000
_LOAD_NUMBER, _SKIP_UNLESS_EQUAL, _RETURN = 0x20, 0x15, 0x06  # classic BPF: ld [0], jeq, ret
_SIGSYS, _SA_SIGINFO = 31, 4


@dataclass(frozen=True, slots=True)
class Machine:
    """System call numbers, and where the calling convention's registers stand in a ucontext_t, in bytes.

    From the kernel's arch/*/include/uapi/asm/{sigcontext,ucontext}.h. All store the low byte first, as object files do.
    """

    seccomp: int
    bpf: int
    arguments: tuple[int, ...]
    result: int


_RISCV = Machine(277, 280, tuple(range(256, 304, 8)), 256)  # a0 to a5, behind pc and x1 to x9
_ARM = Machine(277, 280, tuple(range(184, 232, 8)), 184)  # x0 to x5, behind fault_address
_X86 = Machine(317, 321, (104, 112, 136, 56, 40, 48), 144)  # rdi, rsi, rdx, r10, r8, r9; rax
MACHINES = {"x86_64": _X86, "aarch64": _ARM, "riscv64": _RISCV}


class _Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """struct sigaction of the C library."""

    _fields_ = (
        ("handler", _Handler),
        ("mask", ctypes.c_ulong * (128 // ctypes.sizeof(ctypes.c_ulong))),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_kept: list[object] = []  # what the C library calls must outlive this module's functions


def answer_bpf(answer: Answer) -> None:
    """Have `answer` decide what every bpf(2) of this process returns, from now on and for good.

    Raises NodeError where the kernel or the machine has no such traps.
    """
    try:
        machine = MACHINES[platform.machine()]
    except KeyError:
        raise NodeError(f"programs can't be compiled on {platform.machine()}: its system calls are unknown") from None
    _handle(machine, answer)
    _trap(machine)


def _handle(machine: Machine, answer: Answer) -> None:
    """Answer each SIGSYS. Calls that a compiler makes hold no lock of the C library, so that Python may run here."""

    def handler(_number: int, _info: int | None, context: int | None) -> None:
        assert context is not None  # noqa: S101 - SA_SIGINFO
        arguments = tuple(ctypes.c_uint64.from_address(context + at).value for at in machine.arguments)
        try:
            result = answer(arguments)
        except OSError as refusal:
            result = -(refusal.errno or 0)
        ctypes.c_int64.from_address(context + machine.result).value = result

    action = _Action(_Handler(handler), flags=_SA_SIGINFO)
    _kept.append(action)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigaction(_SIGSYS, ctypes.byref(action), None):
        raise NodeError(f"programs can't be compiled: {os.strerror(ctypes.get_errno())} for a signal handler")


def _trap(machine: Machine) -> None:
    """Turn bpf(2) into a SIGSYS in this thread and those that it starts."""
    steps = (
        (_LOAD_NUMBER, 0, 0, 0),
        (_SKIP_UNLESS_EQUAL, 0, 1, machine.bpf),
        (_RETURN, 0, 0, _TRAP),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    program = ctypes.byref(_Filter(len(steps), code))
    if libc.syscall(machine.seccomp, _SECCOMP_SET_MODE_FILTER, 0, program):
        reason = os.strerror(ctypes.get_errno())
        raise NodeError(f"programs can't be compiled: the kernel lets no process trap its own calls ({reason})")
