"""The sysctls of the lab's network namespaces, set before any link but loopback exists."""

from __future__ import annotations

# No router speaks, and nobody is here whom an address could duplicate. Each is added with nodad too: without, it is
# tentative (bind refuses it) until the kernel has noticed that its new link is up.
QUICK = {
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/router_solicitations": "0",
    "ipv6/conf/default/accept_ra": "0",
}
ROUTER = QUICK | {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}
# The world outside says at once, every time, that it knows no VIP: a test that waits for one sees when it comes.
OUTSIDE = ROUTER | {"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0"}
NODE = ROUTER | {"ipv4/conf/all/rp_filter": "2", "ipv4/conf/default/rp_filter": "2"}
