/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which way a packet goes on: the host's, or with SWITCH_REDIRECT past it, straight into the pod that it is for.
 *
 * The short cut must not split a connection that the host follows: its conntrack may translate it, so that answers have to
 * come back through it, and firewalls drop what it sees only half of. So a connection stays on the way on which it began.
 * Those that began on the host's way are in host_flows: to_pod notes them, the daemon adds what conntrack had before
 * and removes what conntrack has forgotten. The switch turned off, everything goes the host's way at its next packet.
 *
 * Both pods' links count, so that the two directions of a connection choose alike.
 */
struct route {
	enum way way;
	bool is_routed;		/* the host would be a hop; else a bridge would forward the frame as it is */
	struct pod *pod;	/* for WAY_PEER: whose packet it is */
	struct pod_link *link;	/* and that pod's link */
};

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	__u32 difference = 0;

#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		difference |= a[i] ^ b[i];
	return !difference;
}

/* The connection's tuple as its packets leave this pod. */
static __always_inline struct tuple outgoing(const struct packet *packet)
{
	struct tuple tuple = packet->translated ? packet->to : packet->tuple;

	tuple.direction = FROM_POD;
	return tuple;
}

static __always_inline bool is_host_flow(const struct packet *packet, const struct route *route, struct tuple *key)
{
	if (!may_exist(&packet->link->host_flows) && !may_exist(&route->link->host_flows))
		return false;
	return host_flows.lookup(key);
}

static __always_inline bool is_plain(const struct packet *packet)
{
	return (packet->kind == PACKET_TRANSPORT || packet->kind == PACKET_ICMP_ERROR) && packet->protocol != IPPROTO_SCTP &&
	       packet->transport_offset == NETWORK_OFFSET + NETWORK_HEADER_BYTES;
}

/* What keeps a packet on the host's way, WAY_PEER if nothing does. Sets `route->is_routed`. */
static __always_inline enum way obstacle(const struct packet *packet, struct route *route, struct tuple *key)
{
	const struct pod_link *from = packet->link, *to = route->link;
	struct ethhdr frame;
	__u32 mtu = 0;

	if (!from || !to || may_exist(&from->unrecorded) || may_exist(&to->unrecorded))
		return WAY_STACK_UNRECORDED;
	if (!same_address(&from->pod, &packet->tuple.source))
		return WAY_STACK_SOURCE;
	if (!is_plain(packet))
		return WAY_STACK_KIND;
	if (is_host_flow(packet, route, key))
		return WAY_STACK_HOST_FLOW;
	if (load_bytes(packet->skb, 0, &frame, sizeof(frame)))
		return WAY_STACK_LINK_LAYER;
	route->is_routed = same_mac(frame.h_dest, from->router_mac);
	bool is_bridged = from->bridge && from->bridge == to->bridge && same_mac(frame.h_dest, route->pod->mac);
	if (!route->is_routed && !is_bridged)
		return WAY_STACK_LINK_LAYER;
	if (route->is_routed && packet->hop_limit <= 1)
		return WAY_STACK_HOP_LIMIT;
	/* Fails for a link that is gone, too: while no daemon runs, `pods` may tell of links that were. */
	return CHECK_MTU(packet->skb, route->pod->ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) ? WAY_STACK_MTU : WAY_PEER;
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

/* For a packet that has left its pod's stage. */
static __always_inline struct route choose_way(const struct packet *packet)
{
	struct route route = { .way = WAY_STACK_ELSEWHERE };

	if (!is_on(SWITCH_REDIRECT))
		return route;
	struct tuple key = outgoing(packet);
	route.pod = pods.lookup(&key.destination);
	if (route.pod && route.pod->ifindex != packet->ifindex) {
		route.link = find_link(route.pod->ifindex);
		route.way = obstacle(packet, &route, &key);
	}
	count_way(packet, route.way);
	return route;
}

/* From here on it is a packet that arrives at the other pod. */
static __always_inline void turn_to_pod(struct packet *packet, const struct route *route)
{
	if (packet->translated)
		packet->tuple = packet->to;
	packet->translated = false;
	packet->tuple.direction = TO_POD;
	packet->ifindex = route->pod->ifindex;
	packet->link = route->link;
}

/* One hop less. IPv4's header checksum changes by as much (RFC 1624), IPv6 has none. */
static __always_inline long decrement_hop_limit(struct __sk_buff *skb)
{
#if IP_FAMILY == 4
	const __u32 offset = NETWORK_OFFSET + offsetof(struct iphdr, ttl);
	struct {
		__u8 ttl;
		__u8 protocol;
		__sum16 check;
	} field;

	if (load_bytes(skb, offset, &field, sizeof(field)))
		return -1;
	__u32 check = field.check + htons(0x0100);
	field.check = check + (check >= 0xffff);
	field.ttl--;
	return bpf_skb_store_bytes(skb, offset, &field, sizeof(field), 0);
#else
	const __u32 offset = NETWORK_OFFSET + offsetof(struct ipv6hdr, hop_limit);
	__u8 hop_limit;

	if (load_bytes(skb, offset, &hop_limit, sizeof(hop_limit)))
		return -1;
	hop_limit--;
	return bpf_skb_store_bytes(skb, offset, &hop_limit, sizeof(hop_limit), BPF_F_RECOMPUTE_CSUM);
#endif
}

static __always_inline long write_macs(struct __sk_buff *skb, const struct route *route)
{
	__u8 macs[2 * ETH_ALEN];

	__builtin_memcpy(macs, route->pod->mac, ETH_ALEN);
	__builtin_memcpy(macs + ETH_ALEN, route->link->router_mac, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

/* Straight into the pod, as if it had come through the host. */
static __always_inline int hand_over(const struct packet *packet, const struct route *route)
{
	struct __sk_buff *skb = packet->skb;

	if (route->is_routed && (decrement_hop_limit(skb) || write_macs(skb, route)))
		return TC_ACT_SHOT;
	/* The link that it came from took it for somebody else's, if it went to a bridge. */
	if (skb->pkt_type != PACKET_FOR_HOST && bpf_skb_change_type(skb, PACKET_FOR_HOST))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(route->pod->ifindex, 0);
}

/*
 * The ports of a fragment are in the first one; those that follow change nothing. Returns false for them, and where a
 * packet is too short.
 */
static __always_inline bool read_fragment(const struct packet *packet, struct tuple *tuple)
{
	__u32 offset = packet->transport_offset;
	struct ports ports;
#if IP_FAMILY == 4
	__be16 fragment_be;

	if (load_bytes(packet->skb, NETWORK_OFFSET + offsetof(struct iphdr, frag_off), &fragment_be, sizeof(fragment_be)))
		return false;
#else
	struct extension_header header;

	if (load_bytes(packet->skb, offset, &header, sizeof(header)))
		return false;
	__be16 fragment_be = header.fragment_be;
	tuple->protocol = header.next;
	offset += IPV6_FRAGMENT_HEADER_BYTES;
#endif
	if (fragment_be & htons(FRAGMENT_OFFSET_MASK) || load_bytes(packet->skb, offset, &ports, sizeof(ports)))
		return false;
	tuple->source_port_be = ports.source_be;
	tuple->destination_port_be = ports.destination_be;
	return tuple->protocol == IPPROTO_UDP;
}

/* May this packet be the first that the host sees of a connection? Of UDP each one may be, in fragments or not. */
static __always_inline bool may_be_first(const struct packet *packet, struct tuple *tuple)
{
	if (packet->kind == PACKET_FRAGMENT)
		return read_fragment(packet, tuple);
	return packet->kind == PACKET_TRANSPORT && (packet->protocol == IPPROTO_UDP || is_syn(packet));
}

/*
 * A packet that reaches a pod through the host's stack, in to_pod. The first of a connection (each one of UDP) from
 * a known pod makes the connection the host's: both directions are noted, as far as the short cut could take them.
 */
static __always_inline void note_host_flow(const struct packet *packet)
{
	if (!is_on(SWITCH_REDIRECT) || !packet->link)
		return;
	struct tuple request = outgoing(packet);
	if (!may_be_first(packet, &request) || !pods.lookup(&request.source))
		return;
	struct tuple reply = reversed(&request, FROM_POD);
	struct host_flow *known = host_flows.lookup(&reply);
	if (known && known->ifindex == packet->ifindex)
		return;
	struct host_flow flow = { .ifindex = packet->ifindex, .created_seconds = now_seconds() };
	if (host_flows.update(&request, &flow) || host_flows.update(&reply, &flow))
		note_made(&packet->link->unrecorded);
	note_made(&packet->link->host_flows);
}
