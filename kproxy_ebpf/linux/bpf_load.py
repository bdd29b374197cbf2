"""Giving the kernel what is compiled: programs for its verifier, and BTF."""

from __future__ import annotations

import ctypes
import mmap
import re

from kproxy_ebpf.errors import LoadError
from kproxy_ebpf.linux.bpf import Descriptor, Program
from kproxy_ebpf.linux.libbpf import ProgramLoadOptions, call

SCHED_CLS, CGROUP_SOCK_ADDR, TRACING = 3, 18, 26  # enum bpf_prog_type
TRACE_ITER = 28  # enum bpf_attach_type

_INSTRUCTION_BYTES = 8
_LOG_BYTES = (1 << 24) - 1  # the most that kernels before 5.2 take; only what is written becomes memory
_LINES_TOLD = 20
_LOG_STATISTICS, _STATISTICS_BYTES = 4, 1 << 16  # BPF_LOG_STATS


def load_btf(data: bytes) -> Descriptor:
    """Raises OSError."""
    return Descriptor(call("bpf_btf_load", "of the maps", data, len(data), None), "btf")


def iterator_id(walked: str) -> int:
    """The running kernel's BTF id of what an iterator over `walked` (tcp, udp) is attached to. Raises OSError."""
    return call("libbpf_find_vmlinux_btf_id", walked, walked.encode(), TRACE_ITER)


def steps_of(
    name: str, type_: int, license_: str, instructions: bytes, attach_type: int = 0, attach_btf_id: int = 0
) -> int:
    """How many instructions the verifier walks for a program, of 1,000,000 at most. Raises OSError."""
    words = ctypes.create_string_buffer(_STATISTICS_BYTES)
    options = ProgramLoadOptions(
        size=ctypes.sizeof(ProgramLoadOptions),
        expected_attach_type=attach_type,
        attach_btf_id=attach_btf_id,
        log_level=_LOG_STATISTICS,
        log_size=_STATISTICS_BYTES,
        log=ctypes.addressof(words),
    )
    count = len(instructions) // _INSTRUCTION_BYTES
    arguments = type_, name.encode(), license_.encode(), instructions, count, ctypes.byref(options)
    Program(call("bpf_prog_load", name, *arguments), name).close()
    told = re.search(rb"processed (\d+) insns", words.value)
    return int(told[1]) if told else 0


def load_program(
    name: str, type_: int, license_: str, instructions: bytes, attach_type: int = 0, attach_btf_id: int = 0
) -> Program:
    """Have the verifier check `instructions`, maps' descriptors in them. Raises LoadError with its last words."""
    options = ProgramLoadOptions(
        size=ctypes.sizeof(ProgramLoadOptions), expected_attach_type=attach_type, attach_btf_id=attach_btf_id
    )
    arguments = type_, name.encode(), license_.encode(), instructions, len(instructions) // _INSTRUCTION_BYTES
    try:
        return Program(call("bpf_prog_load", name, *arguments, ctypes.byref(options)), name)
    except OSError as refusal:
        reason = str(refusal)
    # A log costs time, so only what was refused is asked about.
    with mmap.mmap(-1, _LOG_BYTES) as log:
        words = ctypes.c_char.from_buffer(log)
        options.log_level, options.log_size, options.log = 1, _LOG_BYTES, ctypes.addressof(words)
        try:
            return Program(call("bpf_prog_load", name, *arguments, ctypes.byref(options)), name)
        except OSError:
            said = ctypes.string_at(ctypes.addressof(words)).decode(errors="replace").splitlines()
        finally:
            del words  # an exported buffer can't be closed
    last = "\n".join(line for line in said[-_LINES_TOLD:] if line.strip())
    raise LoadError(f"the kernel refuses a program ({reason}):\n{last}")
