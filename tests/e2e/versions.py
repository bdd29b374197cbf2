"""Other versions of this project, made by editing a copy: what a daemon of the next or of the last release is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import kproxy_ebpf
from hack.contract import ROOT, TARGET, declarations, python
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

CONTRACT = "bpf_src/contract.h"

# A new field in flows, affinity and frontends, and two fields of a flow in the other order.
SCHEMA: list[Edit] = [
    (
        CONTRACT,
        "\t__u32 backend_id;\n\t__u32 epoch;\t\t/* of the backend when",
        "\t__u32 upgraded;\n\t__u32 epoch;\n\t__u32 backend_id;\t/* and when",
    ),
    (
        CONTRACT,
        "ASSERT_OFFSET(flow, state, 2 * ADDRESS_BYTES + 24); ASSERT_SIZE(flow, 2 * ADDRESS_BYTES + 36);",
        "ASSERT_OFFSET(flow, state, 2 * ADDRESS_BYTES + 28); ASSERT_SIZE(flow, 2 * ADDRESS_BYTES + 40);",
    ),
    (CONTRACT, "struct affinity {\n", "struct affinity {\n\t__u32 upgraded;\n"),
    (CONTRACT, "ASSERT_SIZE(affinity, 16)", "ASSERT_SIZE(affinity, 20)"),
    (CONTRACT, "struct frontend {\n", "struct frontend {\n\t__u32 upgraded;\n"),
    (CONTRACT, "ASSERT_SIZE(frontend, 20)", "ASSERT_SIZE(frontend, 24)"),
    ("kproxy_ebpf/datapath/flows/records.py", '"backend_id", "epoch"', '"epoch", "backend_id"'),
    ("kproxy_ebpf/datapath/flows/records.py", "backend_id, epoch, seen", "epoch, backend_id, seen"),
    ("kproxy_ebpf/datapath/flows/records.py", "(flow.backend_id, flow.epoch,", "(flow.epoch, flow.backend_id,"),
]

# A field of a flow in another size: its entries can't be migrated.
OTHER_SIZE: list[Edit] = [
    (CONTRACT, "\t__u8 flags;\t\t/* enum flow_flags */\n\t__u16 pad;\n", "\t__u8 pad;\n\t__u16 flags;\n"),
]

DATAGRAMS = """
int sendmsg(struct bpf_sock_addr *call)
{
	struct bpf_sock *socket = call->sk;

	if (!socket || call->protocol != IPPROTO_UDP || socket->dst_port || !is_our_family(call, PLAIN))
		return PERMIT;
	struct tuple tuple = tuple_of(call, PLAIN);
	struct peer *known = peers.sk_storage_get(socket, NULL, 0);
	if (known && known->vip_port_be == tuple.destination_port_be && same_address(&known->vip, &tuple.destination)) {
		struct backend *backend = backends.lookup(&known->backend_id);
		if (backend && backend->epoch == known->epoch && backend->state == BACKEND_USABLE) {
			lead_to_backend(call, PLAIN, known);
			return PERMIT;
		}
	}
	if (!is_on(SWITCH_SOCKET) || !is_pods(call))
		return PERMIT;
	struct choice choice = choose_at_socket(&tuple, now_seconds());
	if (choice.verdict != VERDICT_BALANCED)
		return PERMIT;
	struct peer peer = peer_with(&tuple, choice.backend_id, now_seconds());
	known = peers.sk_storage_get(socket, &peer, BPF_SK_STORAGE_GET_F_CREATE);
	if (!known)
		return PERMIT;
	*known = peer;
	lead_to_backend(call, PLAIN, &peer);
	observe_call(&tuple, &peer, VERDICT_CONNECTED);
	return PERMIT;
}

static __always_inline int on_recvmsg(struct bpf_sock_addr *call, enum address_form form)
{
	struct bpf_sock *socket = call->sk;

	if (!socket || !is_our_family(call, form))
		return PERMIT;
	struct address source = address_of(call, form);
	struct peer *peer = connections.sk_storage_get(socket, NULL, 0);
	if (!is_connected_to(peer, socket, &source, call->user_port)) {
		peer = peers.sk_storage_get(socket, NULL, 0);
		if (!peer || peer->backend_port_be != call->user_port || !same_address(&peer->backend, &source))
			return PERMIT;
	}
	show_vip(call, form, peer);
	return PERMIT;
}

int recvmsg(struct bpf_sock_addr *call)
{
	return on_recvmsg(call, PLAIN);
}

#if IP_FAMILY == 4

int recvmsg_mapped(struct bpf_sock_addr *call)
{
	return on_recvmsg(call, MAPPED);
}

#endif

int getpeername(struct"""

# Versions that led UDP at the socket, too: connected sockets, and the datagrams of others to their last VIP.
LEADS_DATAGRAMS: list[Edit] = [
    ("bpf_src/cgroup.c", "call->protocol != IPPROTO_TCP)", "call->protocol == IPPROTO_SCTP)"),
    ("bpf_src/cgroup.c", "\nint getpeername(struct", DATAGRAMS),
    ("bpf_src/socket/peer.h", "BPF_SK_STORAGE(", "BPF_SK_STORAGE(peers, struct peer);\nBPF_SK_STORAGE("),
    (CONTRACT, "\t__u64 host_netns_", "\t__u32 datagrams_since_seconds;\n\t__u32 pad;\n\t__u64 host_netns_"),
    (CONTRACT, "ASSERT_OFFSET(settings, host_netns_cookie, 8); ASSERT_SIZE(settings, 16);", ""),
    ("kproxy_ebpf/contract/maps.py", "MAPS = (\n", 'MAPS = (\n    Row("peers", "u32", "Peer", Group.STORAGES),\n'),
    (
        "kproxy_ebpf/contract/programs.py",
        "    GETPEERNAME4 =",
        "    SENDMSG4 = 14\n    SENDMSG6 = 15\n    RECVMSG4 = 19\n    RECVMSG6 = 20\n    GETPEERNAME4 =",
    ),
    (
        "kproxy_ebpf/contract/programs.py",
        '"getpeername": CgroupHook.GETPEERNAME4,',
        '"sendmsg": CgroupHook.SENDMSG4, "recvmsg": CgroupHook.RECVMSG4, "recvmsg_mapped": CgroupHook.RECVMSG6,'
        '"getpeername": CgroupHook.GETPEERNAME4,',
    ),
    (
        "kproxy_ebpf/contract/programs.py",
        '"getpeername": CgroupHook.GETPEERNAME6,',
        '"sendmsg": CgroupHook.SENDMSG6, "recvmsg": CgroupHook.RECVMSG6, "getpeername": CgroupHook.GETPEERNAME6,',
    ),
    ("kproxy_ebpf/datapath/sockets/cgroup.py", '= ("getpeername",', '= ("getpeername", "recvmsg", "sendmsg",'),
]


def compiled_version(folder: Path, edits: list[Edit]) -> Path:
    """`other_version`, with its programs compiled: a compiler beside the traffic of a test would slow down both."""
    environment = os.environ | {"PYTHONPATH": str(other_version(folder, edits))}
    compiler = [sys.executable, "-P", "-m", "kproxy_ebpf.lab.compiled"]
    subprocess.run(compiler, env=environment, check=True, timeout=300)
    return folder


def other_version(folder: Path, edits: list[Edit]) -> Path:
    """A copy of the package and of the sources in `folder`, for PYTHONPATH, with the contract that follows."""
    sources, package = source_folder(), Path(kproxy_ebpf.__file__).parent
    shutil.copytree(sources, folder / "bpf_src")
    shutil.copytree(package, folder / "kproxy_ebpf", ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, after in edits:
        file = folder / name
        text = file.read_text()
        assert text.count(before) >= 1, f"{name} has changed: {before!r} is not in it"
        file.write_text(text.replace(before, after, 1))
    (folder / TARGET.relative_to(ROOT)).write_text(python(declarations(folder / "bpf_src")))
    return folder
