/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Decides how a packet is forwarded: through the host's stack, or with SWITCH_REDIRECT redirected, directly into the
 * receiving pod or to the next hop on the way to another node.
 *
 * Redirect must not split a connection that the host follows. The host's conntrack may translate the connection, so
 * that answers have to come back through it, and firewalls drop packets of a connection that conntrack has only half
 * seen. So a connection stays where it began (host_flow.h). When the switch is turned off, all packets go through the
 * host's stack.
 *
 * Both pods' links are asked, so that the two directions of a connection decide alike. All that is known of a pod on
 * another node is that its address is in the cluster, and that nobody masquerades packets to such an address.
 */

#define PACKET_FOR_HOST 0 /* PACKET_HOST of linux/if_packet.h */

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	__u32 difference = 0;

#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		difference |= a[i] ^ b[i];
	return !difference;
}

/* True if no router would do more to the packet than to decrement its hop limit. */
static __always_inline bool is_plain(const struct packet *packet)
{
	return (packet->kind == PACKET_TRANSPORT || packet->kind == PACKET_ICMP_ERROR) &&
	       packet->protocol != IPPROTO_SCTP &&
	       packet->transport_offset == NETWORK_OFFSET + NETWORK_HEADER_BYTES;
}

/* WAY_PEER if the packet fits the pod's link. A link that is gone fails, too: `pods` is stale while no daemon runs. */
static __always_inline enum way way_into(const struct packet *packet, const struct pod *pod)
{
	__u32 mtu = 0;

	return CHECK_MTU(packet->skb, pod->ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) ? WAY_STACK_MTU : WAY_PEER;
}

/* Why a pod's packet stays in the host's stack; WAY_PEER if neither its sender nor its connection is a reason. */
static __always_inline enum way obstacle_at_sender(const struct packet *packet, const struct pod_link *to,
						   struct tuple *key)
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

/* The way to a pod of this node. Sets `route->link` and `route->is_routed`. */
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
	bool is_bridged = from->bridge && from->bridge == route->link->bridge &&
			  same_mac(frame.h_dest, route->pod->mac);
	if (!route->is_routed && !is_bridged)
		return WAY_STACK_LINK_LAYER;
	if (route->is_routed && packet->hop_limit <= 1)
		return WAY_STACK_HOP_LIMIT;
	return way_into(packet, route->pod);
}

/* The way to an address of the cluster that no pod of this node has. */
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

/* Keep the pointers for WAY_PEER only. For every verifier: none follows what `way` says of them. */
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

	count(ways.lookup(&index), packet);
}

/* Choose the way of a packet that has left its pod. */
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

/* A fragment goes through the host's stack: its size alone does not say whether its datagram fits the way. */
static __always_inline void count_way_of_fragment(const struct packet *packet)
{
	if (!is_on(SWITCH_REDIRECT))
		return;
	struct tuple key = outgoing(packet);
	bool is_known = pods.lookup(&key.destination) || is_in_cluster(&key.destination);

	count_way(packet, is_known ? WAY_STACK_KIND : WAY_STACK_ELSEWHERE);
}

/*
 * Choose the way of a packet from another node, at the uplink where it arrives. `key` is the tuple of its connection's
 * packets in this direction. Any router may send an ICMP error, so its `key` is the quoted tuple, reversed. `begins`
 * says that the packet may be the first one of its connection. A packet that is for no pod is not counted.
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
