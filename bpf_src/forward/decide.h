/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which way a packet goes on: the host's, or with SWITCH_REDIRECT past it, straight into the pod that it is for, or to the
 * next hop on its way to another node.
 *
 * The short cut must not split a connection that the host follows: its conntrack may translate it, so that answers have to
 * come back through it, and firewalls drop what it sees only half of. So a connection stays on the way on which it began
 * (host_flow.h). The switch turned off, everything goes the host's way at its next packet.
 *
 * Both pods' links count, so that the two directions of a connection choose alike. Of a pod on another node nothing is known
 * but that its address is in the cluster: nobody masquerades what goes there.
 */
#define FIB_INET 2 /* AF_INET and AF_INET6 of linux/socket.h */
#define FIB_INET6 10

struct route {
	enum way way;
	bool is_routed;		/* the host would be a hop; else a bridge would forward the frame as it is */
	struct pod *pod;	/* for WAY_PEER: whose packet it is; NULL for all others */
	struct pod_link *link;	/* and that pod's link */
	__u32 uplink;		/* for WAY_NEIGHBOUR: the ifindex of the link that it leaves by */
	struct bpf_redir_neigh next_hop;	/* and to whom */
};

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	__u32 difference = 0;

#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		difference |= a[i] ^ b[i];
	return !difference;
}

static __always_inline bool is_plain(const struct packet *packet)
{
	return (packet->kind == PACKET_TRANSPORT || packet->kind == PACKET_ICMP_ERROR) && packet->protocol != IPPROTO_SCTP &&
	       packet->transport_offset == NETWORK_OFFSET + NETWORK_HEADER_BYTES;
}

/* Fails for a link that is gone, too: while no daemon runs, `pods` may tell of links that were. */
static __always_inline enum way way_into(const struct packet *packet, const struct pod *pod)
{
	__u32 mtu = 0;

	return CHECK_MTU(packet->skb, pod->ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) ? WAY_STACK_MTU : WAY_PEER;
}

/* Why a pod's packet stays on the host's way; WAY_PEER if nothing that is known of its sender and its connection says so. */
static __always_inline enum way obstacle_at_sender(const struct packet *packet, const struct pod_link *to, struct tuple *key)
{
	const struct pod_link *from = packet->link;

	if (!from || may_exist(&from->unrecorded))
		return WAY_STACK_UNRECORDED;
	if (!same_address(&from->pod, &packet->tuple.source))
		return WAY_STACK_SOURCE;
	if (!is_plain(packet))
		return WAY_STACK_KIND;
	bool may_be_host_flow = may_exist(&from->host_flows) || (to && may_exist(&to->host_flows));
	return may_be_host_flow && host_flows.lookup(key) ? WAY_STACK_HOST_FLOW : WAY_PEER;
}

/* To a pod of this node. Sets `route->link` and `route->is_routed`. */
static __always_inline enum way way_to_pod(const struct packet *packet, struct route *route, struct tuple *key)
{
	const struct pod_link *from = packet->link;
	struct ethhdr frame;

	if (route->pod->ifindex == packet->ifindex)
		return WAY_STACK_ELSEWHERE;
	route->link = find_link(route->pod->ifindex);
	if (!route->link || may_exist(&route->link->unrecorded))
		return WAY_STACK_UNRECORDED;
	enum way way = obstacle_at_sender(packet, route->link, key);
	if (way != WAY_PEER)
		return way;
	if (!from || load_bytes(packet->skb, 0, &frame, sizeof(frame)))
		return WAY_STACK_LINK_LAYER;
	route->is_routed = same_mac(frame.h_dest, from->router_mac);
	bool is_bridged = from->bridge && from->bridge == route->link->bridge && same_mac(frame.h_dest, route->pod->mac);
	if (!route->is_routed && !is_bridged)
		return WAY_STACK_LINK_LAYER;
	if (route->is_routed && packet->hop_limit <= 1)
		return WAY_STACK_HOP_LIMIT;
	return way_into(packet, route->pod);
}

/* Of the largest packet that this one is cut into on its way: from the IP header on, in bytes; 0 where that can't be told. */
static __always_inline __u16 largest_bytes(const struct packet *packet)
{
	__u32 transport_bytes = sizeof(struct udphdr);
	__u8 data_offset;

	if (!packet->skb->gso_size) {
		__u32 bytes = packet->end_offset - NETWORK_OFFSET;
		return bytes <= 0xffff ? bytes : 0;
	}
	if (packet->protocol == IPPROTO_TCP) {
		if (load_bytes(packet->skb, packet->transport_offset + offsetof(struct transport_start, data_offset), &data_offset,
			       sizeof(data_offset)))
			return 0;
		transport_bytes = (data_offset >> 4) * TCP_DATA_OFFSET_UNIT;
	}
	return NETWORK_HEADER_BYTES + transport_bytes + packet->skb->gso_size;
}

/* By the host's own routes and rules, as if it forwarded a packet of `bytes` (0: of any length) that came from the pod's link. */
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
	 * A neighbour that is not known is asked for when a packet is handed to it. But what begins a connection goes by the
	 * stack then, which tells the pod if nobody answers.
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

/* To an address of the cluster that is none of this node's pods'. */
static __always_inline enum way way_to_node(const struct packet *packet, struct route *route, struct tuple *key)
{
	const struct pod_link *from = packet->link;
	enum way way = obstacle_at_sender(packet, NULL, key);
	struct ethhdr frame;

	if (way != WAY_PEER)
		return way;
	if (!from || load_bytes(packet->skb, 0, &frame, sizeof(frame)) || !same_mac(frame.h_dest, from->router_mac))
		return WAY_STACK_LINK_LAYER;
	if (packet->hop_limit <= 1)
		return WAY_STACK_HOP_LIMIT;
	__u16 bytes = largest_bytes(packet);
	return bytes ? way_by_routes(packet, from, bytes, route, key) : WAY_STACK_MTU;
}

/* The pod stays with WAY_PEER only: for every verifier, which does not follow what `way` says of the pointers. */
static __always_inline void settle_way(struct route *route)
{
	if (route->way == WAY_PEER)
		return;
	route->pod = NULL;
	route->link = NULL;
}

static __always_inline void count_way(const struct packet *packet, enum way way)
{
	__u32 index = way;
	struct counter *counter = ways.lookup(&index);

	if (counter) {
		counter->packets++;
		counter->bytes += packet->skb->len;
	}
}

/* The first packet of a connection from another node: would its answers leave by an uplink, past the host as it comes? */
static __always_inline bool comes_back(const struct packet *packet, const struct pod_link *link, const struct tuple *key)
{
	struct tuple answer = reversed(key, FROM_POD);
	struct route back = {};

	return way_by_routes(packet, link, 0, &back, &answer) == WAY_NEIGHBOUR;
}

/* For a packet that has left its pod's stage. */
static __always_inline struct route choose_way(const struct packet *packet)
{
	struct route route = { .way = WAY_STACK_ELSEWHERE };

	if (!is_on(SWITCH_REDIRECT))
		return route;
	struct tuple key = outgoing(packet);
	route.pod = pods.lookup(&key.destination);
	if (route.pod)
		route.way = way_to_pod(packet, &route, &key);
	else if (is_in_cluster(&key.destination))
		route.way = way_to_node(packet, &route, &key);
	count_way(packet, route.way);
	settle_way(&route);
	return route;
}

/*
 * For a packet from another node, at the link that it comes by. `key` is the tuple of its connection's packets that come
 * this way; that of an ICMP error, which any router may send, is what it quotes, reversed. `begins`: it may be the first of
 * them. What is for no pod is not counted.
 */
static __always_inline struct route choose_way_in(const struct packet *packet, struct tuple *key, bool begins)
{
	struct route route = { .way = WAY_STACK_ELSEWHERE, .is_routed = true };

	struct pod *pod = pods.lookup((struct address *)&packet->tuple.destination);
	if (!pod || packet->skb->pkt_type != PACKET_FOR_HOST)
		return route;
	route.pod = pod;
	route.link = find_link(pod->ifindex);
	if (!route.link || may_exist(&route.link->unrecorded))
		route.way = WAY_STACK_UNRECORDED;
	else if (pods.lookup(&key->source) || !is_in_cluster(&key->source))
		route.way = WAY_STACK_SOURCE;
	else if (!is_plain(packet))
		route.way = WAY_STACK_KIND;
	else if (may_exist(&route.link->host_flows) && host_flows.lookup(key))
		route.way = WAY_STACK_HOST_FLOW;
	else if (packet->hop_limit <= 1)
		route.way = WAY_STACK_HOP_LIMIT;
	else if (begins && !comes_back(packet, route.link, key))
		route.way = WAY_STACK_ROUTE;
	else
		route.way = way_into(packet, pod);
	count_way(packet, route.way);
	settle_way(&route);
	return route;
}
