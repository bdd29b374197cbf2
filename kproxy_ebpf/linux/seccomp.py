"""System calls of this process answered by this process: what a compiler asks of the kernel can be told without it.

Linux's seccomp lets a process without privileges hand chosen calls to a listener (seccomp_unotify(2), since 5.0), here
a thread of the same process. That thread may look into memory at the addresses that a call names.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
import threading
from collections.abc import Callable

from kproxy_ebpf.errors import NodeError

Answer = Callable[[tuple[int, ...]], int]
"""From the six arguments of a call to its result. An OSError raised becomes the call's own."""

SYSCALL_NUMBERS = {  # seccomp(2), bpf(2); machines that store the low byte first, as object files do
    "x86_64": (317, 321),
    "aarch64": (277, 280),
    "riscv64": (277, 280),
}
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER, _NEW_LISTENER = 1, 1 << 3
_TO_LISTENER, _ALLOW = 0x7FC00000, 0x7FFF0000
_LOAD_NUMBER, _SKIP_UNLESS_EQUAL, _RETURN = 0x20, 0x15, 0x06  # classic BPF: ld [0], jeq, ret
_CALL, _RESULT = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")  # struct seccomp_notif, seccomp_notif_resp
_RECEIVE = 3 << 30 | _CALL.size << 16 | ord("!") << 8 | 0
_SEND = 3 << 30 | _RESULT.size << 16 | ord("!") << 8 | 1


class _Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def answer_bpf(answer: Answer) -> None:
    """Have `answer` decide what every bpf(2) of this process returns, from now on and for good.

    Raises NodeError where the kernel or the machine has no such listeners.
    """
    try:
        seccomp, bpf = SYSCALL_NUMBERS[platform.machine()]
    except KeyError:
        raise NodeError(f"programs can't be compiled on {platform.machine()}: its system calls are unknown") from None
    listener = _listen(seccomp, bpf)
    threading.Thread(target=_serve, args=(listener, answer), name="bpf(2)", daemon=True).start()


def _listen(seccomp: int, number: int) -> int:
    """The descriptor on which calls of `number` come from now on, from this thread and those that it starts."""
    steps = (
        (_LOAD_NUMBER, 0, 0, 0),
        (_SKIP_UNLESS_EQUAL, 0, 1, number),
        (_RETURN, 0, 0, _TO_LISTENER),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    program = ctypes.byref(_Filter(len(steps), code))
    listener: int = libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, _NEW_LISTENER, program)
    if listener < 0:
        reason = os.strerror(ctypes.get_errno())
        raise NodeError(f"programs can't be compiled: the kernel lets no process listen to its own calls ({reason})")
    return listener


def _serve(listener: int, answer: Answer) -> None:
    """Answer until the process ends. Should this thread die, the calls that wait for it fail with ENOSYS."""
    with os.fdopen(listener, "rb", buffering=0):
        while True:
            call = bytearray(_CALL.size)
            fcntl.ioctl(listener, _RECEIVE, call)
            id_, _, _, _, _, _, *arguments = _CALL.unpack(call)
            result, error = 0, 0
            try:
                result = answer(tuple(arguments))
            except OSError as refusal:
                error = -(refusal.errno or 0)
            fcntl.ioctl(listener, _SEND, bytearray(_RESULT.pack(id_, result, error, 0)))
