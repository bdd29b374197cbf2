"""Other versions of this project, made by editing a copy: what a daemon of the next or of the last release is."""

from __future__ import annotations

import shutil
from pathlib import Path

import kproxy_ebpf
from kproxy_ebpf.datapath.generations.sources import source_folder

Edit = tuple[str, str, str]
"""A file, a text in it, and what stands there in the other version."""

CODE: list[Edit] = [("bpf_src/pod.c", "if (!is_ours(skb))", "if (!skb->len || !is_ours(skb))")]

# Programs are swapped link by link: the time between two of them is long enough for connections to begin.
SLOW: list[Edit] = [
    (
        "kproxy_ebpf/datapath/attach/tc.py",
        "            try:\n                if method is Method.TCX:\n",
        "            __import__('time').sleep(0.5)\n            try:\n                if method is Method.TCX:\n",
    ),
]

FIELD = "bpf_src/contract.h"
TWIN = "kproxy_ebpf/contract/maps.py"

# A new field in flows, affinity and frontends, and two fields of a flow in the other order.
SCHEMA: list[Edit] = [
    (
        FIELD,
        "\t__u32 backend_id;\n\t__u32 epoch;\t\t/* of the backend when",
        "\t__u32 upgraded;\n\t__u32 epoch;\n\t__u32 backend_id;\t/* and when",
    ),
    (FIELD, "ASSERT_OFFSET(flow, backend_id, 2 * ADDRESS_BYTES + 8)", "ASSERT_SIZE(flow, 2 * ADDRESS_BYTES + 40)"),
    (
        FIELD,
        "ASSERT_OFFSET(flow, state, 2 * ADDRESS_BYTES + 24);",
        "ASSERT_OFFSET(flow, state, 2 * ADDRESS_BYTES + 28);",
    ),
    (FIELD, "ASSERT_OFFSET(flow, ifindex, 2 * ADDRESS_BYTES + 32);\n", ""),
    (FIELD, "ASSERT_SIZE(flow, 2 * ADDRESS_BYTES + 36);\n", ""),
    (FIELD, "struct affinity {\n", "struct affinity {\n\t__u32 upgraded;\n"),
    (FIELD, "ASSERT_SIZE(affinity, 16)", "ASSERT_SIZE(affinity, 20)"),
    (FIELD, "struct frontend {\n", "struct frontend {\n\t__u32 upgraded;\n"),
    (FIELD, "ASSERT_SIZE(frontend, 20)", "ASSERT_SIZE(frontend, 24)"),
    (
        TWIN,
        '            ("backend_id", c_uint32),\n            ("epoch", c_uint32),\n            ("last_seen',
        '            ("upgraded", c_uint32),\n            ("epoch", c_uint32),\n            ("backend_id", c_uint32),\n'
        '            ("last_seen',
    ),
    (
        TWIN,
        "class Affinity(Structure):\n    _fields_ = (",
        'class Affinity(Structure):\n    _fields_ = (("upgraded", c_uint32),',
    ),
    (
        TWIN,
        "class Frontend(Structure):\n    _fields_ = (",
        'class Frontend(Structure):\n    _fields_ = (("upgraded", c_uint32),',
    ),
    ("kproxy_ebpf/datapath/maps/packing.py", 'Struct("=5I")', 'Struct("=4x5I")'),
    ("kproxy_ebpf/datapath/flows/records.py", "=IIIIBBxxI", "=4xIIIIBBxxI"),
    ("kproxy_ebpf/datapath/flows/records.py", "backend_id, epoch, seen", "epoch, backend_id, seen"),
    ("kproxy_ebpf/datapath/flows/records.py", "(flow.backend_id, flow.epoch,", "(flow.epoch, flow.backend_id,"),
    ("kproxy_ebpf/datapath/flows/sweep.py", "xB3x8xI", "xB3x12xI"),
]

# A field of a flow in another size: its entries can't be carried over.
OTHER_SIZE: list[Edit] = [
    (FIELD, "\t__u8 flags;\t\t/* enum flow_flags */\n\t__u16 pad;\n", "\t__u8 pad;\n\t__u16 flags;\n"),
    (
        TWIN,
        '            ("flags", c_uint8),\n            ("pad", c_uint16),\n            ("created',
        '            ("pad", c_uint8),\n            ("flags", c_uint16),\n            ("created',
    ),
    ("kproxy_ebpf/datapath/flows/records.py", "=IIIIBBxxI", "=IIIIBxHI"),
]


def other_version(folder: Path, edits: list[Edit]) -> Path:
    """A copy of the package and of the sources in `folder`, for PYTHONPATH."""
    sources, package = source_folder(), Path(kproxy_ebpf.__file__).parent
    shutil.copytree(sources, folder / "bpf_src")
    shutil.copytree(package, folder / "kproxy_ebpf", ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, after in edits:
        file = folder / name
        text = file.read_text()
        assert text.count(before) >= 1, f"{name} has changed: {before!r} is not in it"
        file.write_text(text.replace(before, after, 1))
    return folder
