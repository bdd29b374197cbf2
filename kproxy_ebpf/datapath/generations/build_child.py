"""The child process that compiles one address family: the only place that imports bcc, which costs 160 MB with LLVM.

Reads one JSON object on standard input: `text` (C) and `parent` (its pid). Writes one on standard output: `compiled`
(see object_file) and `tools` (see toolchain). Exits with 1 where the text can't be compiled; the compiler's words are
on standard error.

Nothing is loaded here, and no privilege is needed, so that an image can be given its programs where it is built. BCC
makes maps before it shows instructions: `_Kernel` answers it in the kernel's place, and so learns what maps it wants.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import struct
import sys
from typing import Any

from kproxy_ebpf.datapath.generations.object_file import Code, Compiled, MapDefinition, compiled_to_json
from kproxy_ebpf.linux.seccomp import answer_bpf

_WARNINGS = ["-Wno-macro-redefined", "-Wno-unused-function", "-Wno-address-of-packed-member"]  # of BCC's own headers
_PR_SET_PDEATHSIG = 1
_MAP_CREATE, _BTF_LOAD = 0, 18  # enum bpf_cmd
_MAP_ATTRIBUTES = struct.Struct("=5I")  # the head of union bpf_attr: type, key_size, value_size, max_entries, map_flags
_MAP_TYPES = struct.Struct("=2I")  # btf_key_type_id, btf_value_type_id
_MAP_TYPES_AT = 52
_BTF_ATTRIBUTES = struct.Struct("=QQI")  # btf, btf_log_buf, btf_size
_LOAD_MAP = b"\x18"  # an instruction of 16 bytes that takes a 64-bit value: BPF_LD | BPF_IMM | BPF_DW
_MAP_DESCRIPTOR = 1  # BPF_PSEUDO_MAP_FD, in the upper half of the second byte


def main() -> None:
    order = json.load(sys.stdin)
    _die_with(order["parent"])
    kernel = _Kernel()
    answer_bpf(kernel.answer)
    compiled = _compile(order["text"], kernel)
    from kproxy_ebpf.datapath.generations.toolchain import tools_of_this_process

    json.dump({"compiled": compiled_to_json(compiled), "tools": tools_of_this_process()}, sys.stdout)


def _die_with(parent: int) -> None:
    """End when the parent does, however that happens: nobody waits for what comes out."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


class _Kernel:
    """Takes maps and their BTF, and gives descriptors for them; refuses all else."""

    def __init__(self) -> None:
        self.maps: dict[int, MapDefinition] = {}
        self.btf = b""

    def answer(self, arguments: tuple[int, ...]) -> int:
        """See seccomp.Answer. The arguments are those of bpf(2): command, attributes, their size."""
        command, address, size = arguments[:3]
        attributes = ctypes.string_at(address, size)
        if command == _BTF_LOAD:
            data, _, length = _BTF_ATTRIBUTES.unpack_from(attributes)
            self.btf = ctypes.string_at(data, length)
            return os.memfd_create("btf")
        if command != _MAP_CREATE:
            raise OSError(errno.EPERM, "not while compiling")
        descriptor = os.memfd_create("map")
        types = _MAP_TYPES.unpack_from(attributes, _MAP_TYPES_AT)
        self.maps[descriptor] = MapDefinition(*_MAP_ATTRIBUTES.unpack_from(attributes), *types)
        return descriptor


def _compile(text: str, kernel: _Kernel) -> Compiled:
    from bcc import BPF
    from bcc.libbcc import lib

    module = BPF(text=text.encode(), cflags=_WARNINGS)
    lib.bpf_table_name.restype = lib.bpf_function_name.restype = ctypes.c_char_p
    names = {
        lib.bpf_table_fd_id(module.module, index): _name(lib.bpf_table_name(module.module, index))
        for index in range(lib.bpf_num_tables(module.module))
    }
    functions = [lib.bpf_function_name(module.module, index) for index in range(lib.bpf_num_functions(module.module))]
    return Compiled(
        lib.bpf_module_license(module.module).decode(),
        kernel.btf,
        {names[descriptor]: definition for descriptor, definition in kernel.maps.items()},
        {_name(function): _code(module.dump_func(function), names) for function in functions},
    )


def _name(name: Any) -> str:
    return str(name.decode())


def _code(instructions: bytes, names: dict[int, str]) -> Code:
    """Take the descriptors out of the instructions."""
    code, maps, index = bytearray(instructions), {}, 0
    while index * 8 < len(code):
        at = index * 8
        wide = code[at : at + 1] == _LOAD_MAP
        if wide and code[at + 1] >> 4 == _MAP_DESCRIPTOR:
            maps[index] = names[int.from_bytes(code[at + 4 : at + 8], "little")]
            code[at + 4 : at + 8] = bytes(4)
        index += 2 if wide else 1
    return Code(bytes(code), maps)


if __name__ == "__main__":
    main()
