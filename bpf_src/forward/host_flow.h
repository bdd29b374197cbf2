/* SPDX-License-Identifier: GPL-2.0 */
/*
 * host_flows: the connections that began through the host's stack and have to go on through it. The programs record
 * them as their first packets are seen. The daemon adds the ones that the host's conntrack had before, and removes the
 * ones that it has forgotten.
 */

static __always_inline bool is_in_cluster(const struct address *address)
{
	struct cluster_key key = { .prefix_bits = 8 * ADDRESS_BYTES, .address = *address };

	__u32 *is_pods = cluster.lookup(&key);

	return is_pods && *is_pods;
}

/* The tuple of the packet's connection, as its packets leave the sending pod, here or on another node. */
static __always_inline struct tuple outgoing(const struct packet *packet)
{
	struct tuple tuple = packet->translated ? packet->to : packet->tuple;

	tuple.direction = FROM_POD;
	return tuple;
}

/* True if the packet may begin a connection: a SYN does, and any UDP datagram may. */
static __always_inline bool may_begin(const struct packet *packet)
{
	return packet->kind == PACKET_TRANSPORT && (packet->protocol == IPPROTO_UDP || is_syn(packet));
}

/* True if the packet may be the first one of a connection, whole or in fragments. Completes `tuple` for a fragment. */
static __always_inline bool may_be_first(const struct packet *packet, struct tuple *tuple)
{
	return packet->kind == PACKET_FRAGMENT ? read_fragment(packet, tuple) : may_begin(packet);
}

/*
 * Record a connection as the host's, if this packet, which goes through the host's stack, may be its first. Both
 * directions are recorded; ICMP errors about the connection find either.
 */
static __always_inline void note_host_flow(const struct packet *packet, struct tuple *request, struct pod_link *link)
{
	if (!link || !may_be_first(packet, request))
		return;
	struct tuple reply = reversed(request, FROM_POD);
	struct host_flow *known = host_flows.lookup(&reply);
	struct host_flow flow = { .ifindex = link->ifindex, .created_seconds = now_seconds() };
	/* A known entry gets a new time: the daemon may be about to remove an earlier connection with these ports. */
	if (known && known->ifindex == flow.ifindex && known->created_seconds == flow.created_seconds)
		return;
	if (host_flows.update(request, &flow) || host_flows.update(&reply, &flow))
		note_made(&link->unrecorded);
	note_made(&link->host_flows);
}

/* Called by to_pod: the packet reaches its pod through the host's stack, from a sender that redirect can serve, too. */
static __always_inline void note_arrival(const struct packet *packet)
{
	if (!is_on(SWITCH_REDIRECT))
		return;
	struct tuple request = outgoing(packet);
	if (pods.lookup(&request.source) || is_in_cluster(&request.source))
		note_host_flow(packet, &request, packet->link);
}

/*
 * Called by to_uplink: the packet of a pod leaves for another node through the host's stack. Whatever VIP the pod sent
 * it to, the packet has the tuple by now that its answers will have, reversed.
 */
static __always_inline void note_departure(const struct packet *packet)
{
	struct tuple request = packet->tuple;
	struct pod *pod = pods.lookup(&request.source);

	if (pod && is_in_cluster(&request.destination))
		note_host_flow(packet, &request, find_link(pod->ifindex));
}
