/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Connections that began the host's way, which go on that way: host_flows. They are noted here as their first packets are
 * seen; the daemon adds what conntrack had before, and removes what conntrack has forgotten.
 */

static __always_inline bool is_in_cluster(const struct address *address)
{
	struct cluster_key key = { .prefix_bits = 8 * ADDRESS_BYTES, .address = *address };

	__u32 *is_pods = cluster.lookup(&key);

	return is_pods && *is_pods;
}

/* The connection's tuple as its packets leave this pod, or the pod of another node. */
static __always_inline struct tuple outgoing(const struct packet *packet)
{
	struct tuple tuple = packet->translated ? packet->to : packet->tuple;

	tuple.direction = FROM_POD;
	return tuple;
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

/* Does the packet begin a connection? Of UDP each one may. */
static __always_inline bool may_begin(const struct packet *packet)
{
	return packet->kind == PACKET_TRANSPORT && (packet->protocol == IPPROTO_UDP || is_syn(packet));
}

/* May this packet be the first that the host sees of a connection, in fragments or not? */
static __always_inline bool may_be_first(const struct packet *packet, struct tuple *tuple)
{
	return packet->kind == PACKET_FRAGMENT ? read_fragment(packet, tuple) : may_begin(packet);
}

/*
 * The first packet of a connection (each one of UDP) goes the host's way: the connection is the host's. Both directions
 * are noted, and ICMP errors about them are found by either.
 */
static __always_inline void note_host_flow(const struct packet *packet, struct tuple *request, struct pod_link *link)
{
	if (!link || !may_be_first(packet, request))
		return;
	struct tuple reply = reversed(request, FROM_POD);
	struct host_flow *known = host_flows.lookup(&reply);
	struct host_flow flow = { .ifindex = link->ifindex, .created_seconds = now_seconds() };
	/* A known one is made young again: the daemon may be about to forget an earlier connection with these ports. */
	if (known && known->ifindex == flow.ifindex && known->created_seconds == flow.created_seconds)
		return;
	if (host_flows.update(request, &flow) || host_flows.update(&reply, &flow))
		note_made(&link->unrecorded);
	note_made(&link->host_flows);
}

/* A packet that reaches a pod through the host's stack, in to_pod, from where the short cut could have brought it. */
static __always_inline void note_arrival(const struct packet *packet)
{
	if (!is_on(SWITCH_REDIRECT))
		return;
	struct tuple request = outgoing(packet);
	if (pods.lookup(&request.source) || is_in_cluster(&request.source))
		note_host_flow(packet, &request, packet->link);
}

/*
 * A packet of a pod that leaves for another node through the host's stack, in to_uplink: whatever VIP the pod has sent it
 * to, here it has the tuple that its answers will come with.
 */
static __always_inline void note_departure(const struct packet *packet)
{
	struct tuple request = packet->tuple;
	struct pod *pod = pods.lookup(&request.source);

	if (pod && is_in_cluster(&request.destination))
		note_host_flow(packet, &request, find_link(pod->ifindex));
}
