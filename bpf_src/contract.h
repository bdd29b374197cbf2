/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The contract between the programs and the controller: every key, value and enum that both sides read. After a change,
 * `make contract` writes its other half, kproxy_ebpf/contract/layouts.py.
 *
 * Fixed widths, explicit padding, no bit-fields. Fields ending in _be are in network byte order, others in host order.
 * The sources are compiled once per address family; all that it changes here is ADDRESS_WORDS (1 for IPv4, 4 for IPv6).
 * A newer daemon migrates the entries of older maps by field name: a field whose meaning changes gets another name.
 */
#include <linux/types.h>

#define SCHEMA_BYTES 16384
#define ADDRESS_BYTES (4 * ADDRESS_WORDS)
#define ASSERT_OFFSET(type, field, bytes) \
	_Static_assert(__builtin_offsetof(struct type, field) == (bytes), #type "." #field " has moved")
#define ASSERT_SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), #type " has another size")

/* == Packets == */

struct address {
	__be32 words[ADDRESS_WORDS];
};

enum direction {
	FROM_POD = 0,
	TO_POD = 1,
	AT_SOCKET = 2,	/* no packet yet: what a pod's socket asks for */
};

/* What happened to a packet: the drop reason, the counter's index and the event's code. */
enum verdict {
	VERDICT_UNTOUCHED = 0,			/* for no Service: left to the host */
	VERDICT_BALANCED = 1,			/* first packet of a flow: backend chosen, translated */
	VERDICT_TRANSLATED = 2,			/* packet of a known flow, on its way to the backend */
	VERDICT_REVERSED = 3,			/* packet of a known flow, on its way back: the pod sees the VIP */
	VERDICT_ICMP_ERROR_TRANSLATED = 4,	/* ICMP error about a known flow, inner packet included */
	VERDICT_FRAGMENT = 5,			/* fragment without a known first one: left to the host */
	VERDICT_MIDSTREAM = 6,			/* TCP or SCTP, no first packet, of no known flow: left to the host */
	VERDICT_MALFORMED = 7,			/* headers truncated or lying: left to the host */
	VERDICT_REJECTED_NO_BACKEND = 8,	/* frontend without a usable backend: answered with RST or ICMP */
	VERDICT_REJECTED_UNDEFINED_PORT = 9,	/* a VIP, but no frontend on this port: answered with RST or ICMP */
	VERDICT_RESET_BACKEND_GONE = 10,	/* TCP flow whose backend is gone: answered with RST */
	VERDICT_DROPPED_FLOW_TABLE_FULL = 11,	/* no flow could be created: dropped, the sender tries again */
	VERDICT_DROPPED_NO_SOURCE_PORT = 12,	/* the post-NAT tuple collides and no free source port was found */
	VERDICT_DROPPED_TRAFFIC_POLICY = 13,	/* endpoints exist, but the traffic policy admits none */
	VERDICT_DROPPED_SOURCE_RANGE = 14,	/* the client is outside loadBalancerSourceRanges */
	VERDICT_DROPPED_INTERNAL = 15,		/* a helper refused work that was already begun */
	VERDICT_CONNECTED = 16,			/* a socket's connection was led to a backend */
	VERDICT_DROPPED_FRAGMENT = 17,		/* overlaps the first fragment, or is too small or too far for one */
	VERDICT_DROPPED_WITH_FIRST = 18,	/* the first fragment of its datagram was rejected or dropped */
	VERDICT_COUNT = 19,
};

/* counters: per CPU, by verdict; ways: per CPU, by way. */
struct counter {
	__u64 packets;
	__u64 bytes;
};
ASSERT_SIZE(counter, 16);

/* == Services == */

/* frontends: what a VIP, port and protocol lead to. Port 0 with protocol 0 marks an address as a VIP. */
struct frontend_key {
	struct address address;
	__be16 port_be;
	__u8 protocol;	/* IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP */
	__u8 pad;
};
ASSERT_OFFSET(frontend_key, port_be, ADDRESS_BYTES); ASSERT_SIZE(frontend_key, ADDRESS_BYTES + 4);

enum frontend_flags {
	FRONTEND_VIP_ONLY = 1 << 0,	/* the entry of the address itself, see frontend_key */
	FRONTEND_DROP = 1 << 1,		/* slot_count is 0 because a traffic policy excludes what there is: no reject */
	FRONTEND_SOURCE_RANGES = 1 << 2,	/* admitted clients are listed in source_ranges */
	FRONTEND_MAGLEV = 1 << 3,	/* choose the slot by the flow's hash, not at random */
};

struct frontend {
	__u32 service_id;	/* one per Service port and family; 0 is never used */
	__u32 slot_base;
	__u32 slot_count;	/* 0: reject, or drop with FRONTEND_DROP */
	__u32 flags;		/* enum frontend_flags */
	__u32 affinity_seconds;	/* 0: no session affinity */
};
ASSERT_SIZE(frontend, 20);

enum backend_state {
	BACKEND_FREE = 0,	/* the id is unused */
	BACKEND_USABLE = 1,	/* new and established connections */
	BACKEND_KEEP = 2,	/* terminating, not ready, or not chosen: established connections only */
	BACKEND_LEFT = 3,	/* left the Service while ready: TCP goes on, UDP moves */
	BACKEND_GONE = 4,	/* its pod is gone: TCP gets a RST, UDP moves */
};

enum backend_flags {
	BACKEND_READY = 1 << 0,	/* its last known condition; decides between LEFT and GONE when it disappears */
	BACKEND_LOCAL = 1 << 1,	/* on this node */
};

/* backends: array by backend id; id 0 is never used. */
struct backend {
	struct address address;
	__be16 port_be;
	__u8 state;	/* enum backend_state */
	__u8 flags;	/* enum backend_flags */
	__u32 epoch;	/* raised each time the id is given to another backend */
	__u32 service_id;
};
ASSERT_OFFSET(backend, epoch, ADDRESS_BYTES + 4); ASSERT_SIZE(backend, ADDRESS_BYTES + 12);

/* affinity: which backend a client's connections to a Service port go to. */
struct affinity_key {
	struct address client;
	__u32 service_id;
};
ASSERT_SIZE(affinity_key, ADDRESS_BYTES + 4);

struct affinity {
	__u32 backend_id;
	__u32 epoch;
	__u32 last_used_seconds;	/* CLOCK_MONOTONIC */
	__u32 pad;
};
ASSERT_SIZE(affinity, 16);

/* source_ranges: longest-prefix match; prefix_bits counts service_id (32) plus the range's own bits. */
struct source_range_key {
	__u32 prefix_bits;
	__u32 service_id;
	struct address client;
};
ASSERT_SIZE(source_range_key, ADDRESS_BYTES + 8);

/* == Flows == */

/* flows: one entry for each direction of a connection; `direction` is the hook that looks it up. */
struct tuple {
	struct address source;
	struct address destination;
	__be16 source_port_be;
	__be16 destination_port_be;
	__u8 protocol;
	__u8 direction;	/* enum direction */
	__u16 pad;
};
ASSERT_OFFSET(tuple, source_port_be, 2 * ADDRESS_BYTES); ASSERT_SIZE(tuple, 2 * ADDRESS_BYTES + 8);

enum flow_state {
	FLOW_NEW = 0,		/* seen in one direction only */
	FLOW_ESTABLISHED = 1,	/* seen in both */
	FLOW_CLOSING = 2,	/* TCP: one FIN */
	FLOW_CLOSED = 3,	/* TCP: both FINs, or a RST */
};

/* By protocol and state, those of nf_conntrack, so that a flow lives as long as it did with kube-proxy. */
enum timeout_seconds {
	TIMEOUT_TCP_NEW = 120,
	TIMEOUT_TCP_ESTABLISHED = 432000,
	TIMEOUT_TCP_CLOSING = 3600,	/* one side may go on sending long after the other's FIN */
	TIMEOUT_TCP_CLOSED = 120,
	TIMEOUT_UDP_NEW = 30,
	TIMEOUT_UDP_ESTABLISHED = 120,
	TIMEOUT_SCTP_NEW = 30,
	TIMEOUT_SCTP_ESTABLISHED = 210,
	TIMEOUT_SCTP_CLOSED = 10,
};

enum flow_flags {
	FLOW_REPLY = 1 << 0,	/* this entry is for packets from the backend to the client */
	FLOW_HAIRPIN = 1 << 1,	/* client and backend are one pod: both entries are looked up at FROM_POD */
	FLOW_FIN_CLIENT = 1 << 2,
	FLOW_FIN_BACKEND = 1 << 3,
};

/* What a packet's tuple becomes. The mirror entry's key is this `to` reversed; its `to`, this entry's key reversed. */
struct flow {
	struct tuple to;	/* `to.direction` is the hook at which the mirror is looked up */
	__u32 backend_id;
	__u32 epoch;		/* of the backend when the flow was made */
	__u32 last_seen_seconds;	/* CLOCK_MONOTONIC, written at most once a second */
	__u32 service_id;
	__u8 state;		/* enum flow_state */
	__u8 flags;		/* enum flow_flags */
	__u16 pad;
	__u32 created_seconds;	/* CLOCK_MONOTONIC */
	__u32 ifindex;		/* of the client's link, on the host's side */
};
ASSERT_OFFSET(flow, state, 2 * ADDRESS_BYTES + 24); ASSERT_SIZE(flow, 2 * ADDRESS_BYTES + 36);

/* == Forwarding == */

/* How a packet from or to a pod was forwarded with SWITCH_REDIRECT, and why by the stack: the index in `ways`. */
enum way {
	WAY_PEER = 0,			/* handed straight to the pod */
	WAY_STACK_ELSEWHERE = 1,	/* for no address that is known to be in the cluster */
	WAY_STACK_UNRECORDED = 2,	/* one of the two links is new: the host may follow its connections */
	WAY_STACK_HOST_FLOW = 3,	/* of a connection that the host follows, and perhaps translates */
	WAY_STACK_SOURCE = 4,		/* not from its pod's address; from another node: from none in the cluster */
	WAY_STACK_KIND = 5,		/* not TCP, UDP or an error about them; a fragment; options for routers */
	WAY_STACK_LINK_LAYER = 6,	/* addressed neither to the host nor to that pod */
	WAY_STACK_HOP_LIMIT = 7,	/* it ends here, and the host says so */
	WAY_STACK_MTU = 8,		/* too large for the pod's link, or the link is gone: the host answers */
	WAY_NEIGHBOUR = 9,		/* handed to the next hop on its way to another node */
	WAY_STACK_ROUTE = 10,		/* the host's routes lead it to no uplink, or nowhere */
	WAY_COUNT = 11,
};

/*
 * A lock-free hint that a link certainly has no entries of a kind. Programs increment `made` after each entry that they
 * create. The daemon reads `made`, scans, and if nothing was found writes `settled = made + 1`; it lowers `settled` to
 * take the hint back. The hint holds while `settled` is one more than `made`: zeros say that nobody has scanned yet.
 */
struct standing {
	__u32 made;
	__u32 settled;
};

/* pod_links: array by ifindex modulo its size, what can be told of a link without looking at its connections. */
struct pod_link {
	__u32 ifindex;		/* of the host's side; 0: nobody's. A link whose place is taken goes the slow way */
	__u32 bridge;		/* ifindex of the bridge that it is a port of, or 0 */
	struct standing flows;	/* flows whose client is the pod */
	struct standing host_flows;	/* entries of host_flows at this link */
	struct standing unrecorded;	/* connections of the pod that the host follows and host_flows lacks */
	struct address pod;	/* the pod's address; zeros where none is known */
	__u8 router_mac[6];	/* what the pod addresses for the host to route */
	__u16 pad;
	__u32 netns_id;		/* the pod's network namespace, as the host's numbers it */
};
ASSERT_OFFSET(pod_link, pod, 32); ASSERT_SIZE(pod_link, ADDRESS_BYTES + 44);

/* pods: local pods by address, as routes, neighbours and bridges of the host tell, never what a pod says. */
struct pod {
	__u32 ifindex;		/* of its link, on the host's side */
	__u8 mac[6];
	__u16 pad;
};
ASSERT_SIZE(pod, 12);

/* host_flows: by tuple (direction 0), connections that began through the host: all their packets take its stack. */
struct host_flow {
	__u32 ifindex;		/* the link whose standing counts it */
	__u32 created_seconds;	/* CLOCK_MONOTONIC */
};
ASSERT_SIZE(host_flow, 8);

/* cluster: longest-prefix match. 1: packets to and from here may bypass the host's stack; 0: of the host itself. */
struct cluster_key {
	__u32 prefix_bits;
	struct address address;
};
ASSERT_SIZE(cluster_key, ADDRESS_BYTES + 4);

/* == Sockets == */

/* connections: sockets' storage. Whom a socket talks to through a VIP. Kept stable: storage can't be migrated. */
struct peer {
	struct address vip;
	struct address backend;
	__be16 vip_port_be;
	__be16 backend_port_be;
	__u32 backend_id;
	__u32 epoch;	/* of the backend when it was chosen */
	__u32 last_used_seconds;	/* CLOCK_MONOTONIC, of its connect() */
};
ASSERT_OFFSET(peer, backend_id, 2 * ADDRESS_BYTES + 4); ASSERT_SIZE(peer, 2 * ADDRESS_BYTES + 16);

/* What the iterators over a network namespace's sockets write of each that has something in `connections`. */
struct listed_socket {
	__u64 cookie;
	__u32 backend_id;
	__u32 epoch;
};
ASSERT_SIZE(listed_socket, 16);

/* == Settings, events, migration == */

/* What new connections meet. Those that exist go on as they began, whatever is switched. */
enum switches {
	SWITCH_TC = 1 << 0,		/* the programs at a pod's link balance */
	SWITCH_SOCKET = 1 << 1,		/* the programs at connect() balance */
	SWITCH_REDIRECT = 1 << 2,	/* packets bypass the host's stack where that is safe */
	SWITCH_UDP_STAYS = 1 << 3,	/* the host may translate UDP of a tuple not known yet: leave it there */
};

enum events_level {
	EVENTS_OFF = 0,
	EVENTS_NOTABLE = 1,	/* first packets of flows, rejects, resets, drops */
	EVENTS_ALL = 2,
};

/* settings: one element, written by the daemon and the commands while the programs run. */
struct settings {
	__u32 events_level;	/* enum events_level */
	__u32 switches;		/* enum switches */
	__u64 host_netns_cookie;	/* of the host's network namespace, whose sockets are left alone */
};
ASSERT_OFFSET(settings, host_netns_cookie, 8); ASSERT_SIZE(settings, 16);

/* events: ring buffer. One layout for both families: an IPv4 address stands in the first word. */
struct event {
	__u64 time_ns;		/* CLOCK_MONOTONIC */
	__be32 source[4];
	__be32 destination[4];
	__be32 to_source[4];	/* after translation; equal to the above where there was none */
	__be32 to_destination[4];
	__be16 source_port_be;
	__be16 destination_port_be;
	__be16 to_source_port_be;
	__be16 to_destination_port_be;
	__u32 ifindex;
	__u32 bytes;
	__u8 verdict;		/* enum verdict */
	__u8 protocol;
	__u8 direction;		/* enum direction */
	__u8 family;		/* 4 or 6 */
	__u32 pad;
};
ASSERT_OFFSET(event, verdict, 88); ASSERT_SIZE(event, 96);

/* schema: one element, the layouts of all maps that stand beside it, as text; written once, by the loader. */
struct schema {
	char text[SCHEMA_BYTES];
};
