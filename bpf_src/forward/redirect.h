/* SPDX-License-Identifier: GPL-2.0 */
/* Past the host's stack: what a router would do to a packet, and then where it goes. */

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
static __always_inline int hand_to_pod(const struct packet *packet, const struct route *route)
{
	struct __sk_buff *skb = packet->skb;

	if (route->is_routed && (decrement_hop_limit(skb) || write_macs(skb, route)))
		return TC_ACT_SHOT;
	/* The link that it came from took it for somebody else's, if it went to a bridge. */
	if (skb->pkt_type != PACKET_FOR_HOST && bpf_skb_change_type(skb, PACKET_FOR_HOST))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(route->pod->ifindex, 0);
}

/* BCC knows this helper with three arguments only. */
static long (*redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *next_hop, int bytes, __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

/* What tells to_uplink that a packet comes past the host. Nothing else in the kernel has used the field since Linux 6.3. */
#define PAST_THE_HOST 0x6b70

/* Out of the uplink, to whom the host would send it. The kernel asks for the neighbour where it has to. */
static __always_inline int hand_to_neighbour(const struct packet *packet, struct route *route)
{
	if (decrement_hop_limit(packet->skb))
		return TC_ACT_SHOT;
	packet->skb->tc_index = PAST_THE_HOST;
	return redirect_neigh(route->uplink, &route->next_hop, sizeof(route->next_hop), 0);
}

static __always_inline int send_on(const struct packet *packet, struct route *route)
{
	if (route->pod && route->link)
		return hand_to_pod(packet, route);
	return route->way == WAY_NEIGHBOUR ? hand_to_neighbour(packet, route) : NEXT;
}
