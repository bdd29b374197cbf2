/* SPDX-License-Identifier: GPL-2.0 */
/* Where the host's own routes and rules lead a packet. */
#define FIB_INET 2 /* AF_INET and AF_INET6 of linux/socket.h */
#define FIB_INET6 10
#define IPV6_FLOWINFO_MASK 0x0fffffff

/* How a packet is forwarded, and where to. */
struct route {
	enum way way;
	bool is_routed;		/* the host would be a hop; else a bridge would forward the frame as it is */
	struct pod *pod;	/* WAY_PEER: the pod that receives the packet; NULL for all other ways */
	struct pod_link *link;	/* the link of `pod` */
	__u32 uplink;		/* WAY_NEIGHBOUR: ifindex of the link that the packet leaves by */
	struct bpf_redir_neigh next_hop;	/* WAY_NEIGHBOUR: who gets the packet there */
};

/* The length of the largest packet that segmentation makes of this one, in bytes from the IP header on; 0: unknown. */
static __always_inline __u16 largest_bytes(const struct packet *packet)
{
	__u32 transport_bytes = sizeof(struct udphdr);
	__u8 data_offset;

	if (!packet->skb->gso_size) {
		__u32 bytes = packet->end_offset - NETWORK_OFFSET;
		return bytes <= 0xffff ? bytes : 0;
	}
	if (packet->protocol == IPPROTO_TCP) {
		const __u32 offset = packet->transport_offset + offsetof(struct transport_start, data_offset);
		if (load_bytes(packet->skb, offset, &data_offset, sizeof(data_offset)))
			return 0;
		transport_bytes = (data_offset >> 4) * TCP_DATA_OFFSET_UNIT;
	}
	return NETWORK_HEADER_BYTES + transport_bytes + packet->skb->gso_size;
}

/* Ask the host's routes and rules, as if it forwarded a packet of `bytes` (0: any length) from the pod's link. */
static __always_inline enum way way_by_routes(const struct packet *packet, const struct pod_link *from, __u16 bytes,
					      struct route *route, const struct tuple *key)
{
	struct bpf_fib_lookup fib = {
		.family = IP_FAMILY == 4 ? FIB_INET : FIB_INET6,
		.l4_protocol = key->protocol,
		.sport = key->source_port_be,
		.dport = key->destination_port_be,
		.tot_len = bytes,
		.ifindex = from->bridge ?: from->ifindex,
	};
	__be32 first;

	if (load_bytes(packet->skb, NETWORK_OFFSET, &first, sizeof(first)))
		return WAY_STACK_ROUTE;
#if IP_FAMILY == 4
	fib.tos = ntohl(first) >> 16;
	fib.ipv4_src = key->source.words[0];
	fib.ipv4_dst = key->destination.words[0];
#else
	fib.flowinfo = first & htonl(IPV6_FLOWINFO_MASK);
	__builtin_memcpy(fib.ipv6_src, &key->source, ADDRESS_BYTES);
	__builtin_memcpy(fib.ipv6_dst, &key->destination, ADDRESS_BYTES);
#endif
	long found = bpf_fib_lookup(packet->skb, &fib, sizeof(fib), 0);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return WAY_STACK_MTU;
	/*
	 * The kernel asks for an unknown neighbour when a packet is redirected to it. But a packet that begins a
	 * connection goes through the host's stack then, which tells the pod if nobody answers.
	 */
	bool is_asked_for = found == BPF_FIB_LKUP_RET_NO_NEIGH && (packet->is_at_uplink || !may_begin(packet));
	if (found != BPF_FIB_LKUP_RET_SUCCESS && !is_asked_for)
		return WAY_STACK_ROUTE;
	route->uplink = fib.ifindex;
	if (!uplinks.lookup(&route->uplink))
		return WAY_STACK_ROUTE;
	route->next_hop.nh_family = fib.family;
	__builtin_memcpy(route->next_hop.ipv6_nh, fib.ipv6_dst, sizeof(fib.ipv6_dst));
	return WAY_NEIGHBOUR;
}

/* True if answers to this first packet, from another node, would be redirected out of an uplink, as the packet came. */
static __always_inline bool comes_back(const struct packet *packet, const struct pod_link *link,
				       const struct tuple *key)
{
	struct tuple answer = reversed(key, FROM_POD);
	struct route back = {};

	return way_by_routes(packet, link, 0, &back, &answer) == WAY_NEIGHBOUR;
}
