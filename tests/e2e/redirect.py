"""What the tests of forwarding redirect share, on one node and between nodes: rules of the host, counts of ways."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from worlds import BULK

from kproxy_ebpf.lab import Node
from kproxy_ebpf.lab.daemon import Daemon

PORTS = {"bulk": BULK, "http": (80, "TCP", 8080), "dns": (53, "UDP", 5353)}
PATIENCE = 30.0  # the daemon spares a busy machine
STRICT = """
table inet strict {
	chain forward {
		type filter hook forward priority 0; policy accept;
		ct state invalid drop
	}
}
"""
TRANSLATING = """
table inet translating {{
	chain prerouting {{
		type nat hook prerouting priority -100; policy accept;
		{ip} daddr {vip} dnat {ip} to {to}
	}}
}}
"""


def ways(daemon: Daemon) -> dict[str, float]:
    """How many packets went which way, as the daemon counts them."""
    found = re.compile(r'kproxy_ebpf_forwarded_total\{way="(\w+)"\}')
    return {match[1]: value for name, value in daemon.metrics().items() if (match := found.match(name))}


def straight(counts: dict[str, float]) -> float:
    """How many of these packets bypassed the host's stack."""
    return counts["peer"] + counts["neighbour"]


@contextmanager
def strict_firewalls(*nodes: Node) -> Iterator[None]:
    """These nodes drop packets that conntrack finds invalid, as kube-proxy's rules do."""
    with ExitStack() as stack:
        for node in nodes:
            node.run(["nft", "-f", "-"], input=STRICT)
            stack.callback(node.run, ["nft", "delete table inet strict"])
        yield
