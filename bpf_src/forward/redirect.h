/* SPDX-License-Identifier: GPL-2.0 */
/* Redirect: what the host's stack would have done to a packet that bypasses it, and the redirect itself. */

/* Turn a packet that leaves one pod into a packet that arrives at the other one. */
static __always_inline void turn_to_pod(struct packet *packet, const struct route *route)
{
	if (packet->translated)
		packet->tuple = packet->to;
	packet->translated = false;
	packet->tuple.direction = TO_POD;
	packet->ifindex = route->pod->ifindex;
	packet->link = route->link;
}

/* Decrement the hop limit. IPv4's header checksum changes by as much (RFC 1624); IPv6 has none. */
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

/* Redirect the packet into the pod, as if it had come through the host's stack. */
static __always_inline int redirect_to_pod(const struct packet *packet, const struct route *route)
{
	struct __sk_buff *skb = packet->skb;

	if (route->is_routed && (decrement_hop_limit(skb) || write_macs(skb, route)))
		return TC_ACT_SHOT;
	/*
	 * Where the packet came from, the kernel took a frame that is for another port of the bridge for another
	 * host's.
	 */
	if (skb->pkt_type != PACKET_FOR_HOST && bpf_skb_change_type(skb, PACKET_FOR_HOST))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(route->pod->ifindex, 0);
}

/* BCC declares this helper with three arguments only. */
static long (*redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *next_hop, int bytes, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

/* In skb->tc_index: tells to_uplink that the packet was redirected. The kernel has not used the field since 6.3. */
#define REDIRECTED 0x6b70

/* Redirect the packet out of the uplink, to the host's next hop. The kernel asks for the neighbour if it has to. */
static __always_inline int redirect_to_neighbour(const struct packet *packet, struct route *route)
{
	if (decrement_hop_limit(packet->skb))
		return TC_ACT_SHOT;
	packet->skb->tc_index = REDIRECTED;
	return redirect_neigh(route->uplink, &route->next_hop, sizeof(route->next_hop), 0);
}

/*
 * Do what the other pod's to_pod would do, because a redirected packet bypasses that program, too; then redirect the
 * packet. `kind` is a constant in each program, so that the program contains the code for that kind only.
 */
static __always_inline int enter_pod(struct packet *packet, const struct route *route, enum packet_kind kind)
{
	turn_to_pod(packet, route);
	int action = finish(packet, kind == PACKET_ICMP_ERROR ? translate_icmp_error(packet) : verdict_to_pod(packet));
	return action == NEXT ? redirect_to_pod(packet, route) : action;
}

/* The tail of the programs at a pod's link: into another pod, to a neighbour, or on through the host's stack. */
static __always_inline int forward(struct packet *packet, struct route *route, enum packet_kind kind)
{
	if (route->pod && route->link)
		return enter_pod(packet, route, kind);
	return route->way == WAY_NEIGHBOUR ? redirect_to_neighbour(packet, route) : NEXT;
}
