/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How a flow is created. Answers find their flow by the reply's tuple, so no two connections may share one: where they
 * would, the new flow gets another source port.
 */
#define SOURCE_PORT_ATTEMPTS 8
#define SOURCE_PORT_FIRST 16384	/* these ports are below the ones that the kernel gives to sockets */
#define SOURCE_PORT_MASK 0x3fff

/* True if a socket of the client has this tuple: one that was led to the backend, or connected to it directly. */
static __always_inline bool collides_with_socket(const struct packet *packet, const struct tuple *tuple)
{
	if (tuple->protocol != IPPROTO_TCP || !packet->link)
		return false;
	struct bpf_sock_tuple answer = {};
#if IP_FAMILY == 4
	__u32 bytes = sizeof(answer.ipv4);
	answer.ipv4.saddr = tuple->destination.words[0];
	answer.ipv4.daddr = tuple->source.words[0];
	answer.ipv4.sport = tuple->destination_port_be;
	answer.ipv4.dport = tuple->source_port_be;
#else
	__u32 bytes = sizeof(answer.ipv6);
	__builtin_memcpy(answer.ipv6.saddr, &tuple->destination, ADDRESS_BYTES);
	__builtin_memcpy(answer.ipv6.daddr, &tuple->source, ADDRESS_BYTES);
	answer.ipv6.sport = tuple->destination_port_be;
	answer.ipv6.dport = tuple->source_port_be;
#endif
	struct bpf_sock *socket = bpf_skc_lookup_tcp(packet->skb, &answer, bytes, packet->link->netns_id, 0);

	if (!socket)
		return false;
	bool is_listening = socket->state == BPF_TCP_LISTEN;
	bpf_sk_release(socket);
	return !is_listening;
}

static __always_inline __be16 random_source_port(void)
{
	return htons(SOURCE_PORT_FIRST + (bpf_get_prandom_u32() & SOURCE_PORT_MASK));
}

/* True if the entry at the reply's key may be replaced: it is a rest of this very connection, or it is over. */
static __always_inline bool is_replaceable(const struct flow *existing, const struct tuple *key, __u32 now)
{
	return mirrors(existing, key) || existing->state == FLOW_CLOSED || is_expired(existing, now);
}

/*
 * Claim the reply's key. If one client port reaches one backend through two VIPs, both connections would have the same
 * reply tuple: the second one gets another source port.
 *
 * The loop is unrolled, because verifiers up to 6.1 accept a loop only if its last instruction is a jump, which no
 * source text can promise.
 */
static __always_inline enum verdict insert_reply(struct flow *flow, const struct tuple *key, __u32 now)
{
	struct flow *existing = NULL;
	bool is_free = false;

#pragma unroll
	for (int i = 0; i < SOURCE_PORT_ATTEMPTS; i++) {
		struct tuple reply_key = mirror_key(flow);

		existing = flows.lookup(&reply_key);
		is_free = !existing || is_replaceable(existing, key, now);
		if (is_free)
			break;
		flow->to.source_port_be = random_source_port();
	}
	if (!is_free)
		return VERDICT_DROPPED_NO_SOURCE_PORT;

	struct tuple reply_key = mirror_key(flow);
	struct flow reply = mirror_of(flow, key);
	long error = existing ? flows.update(&reply_key, &reply) : flows.insert(&reply_key, &reply);
	if (error == -EEXIST) /* another processor was faster */
		return VERDICT_DROPPED_NO_SOURCE_PORT;
	return error ? VERDICT_DROPPED_FLOW_TABLE_FULL : VERDICT_BALANCED;
}

/*
 * True if the answers to this packet, which is for no Service, would match a flow: from one port the client talks to
 * one backend, through a VIP and without it. The entry of a flow that is over is removed here.
 */
static __always_inline bool collides_with_flow(const struct packet *packet, __u32 now)
{
	struct tuple reply_key = reversed(&packet->tuple, TO_POD);
	struct flow *existing = may_have_flows(packet) ? flows.lookup(&reply_key) : NULL;

	if (!existing)
		return false;
	if (existing->state != FLOW_CLOSED && !is_expired(existing, now))
		return true;
	flows.delete(&reply_key);
	return false;
}

/*
 * Create `flow` for a packet whose backend is chosen. With backend 0 the destination stays, and only the source port
 * changes. The reply's entry is written first, so that no reply can come before it is known.
 */
static __always_inline enum verdict create_flow(const struct packet *packet, __u32 backend_id, __u32 now,
						struct flow *flow)
{
	flow->to = packet->tuple;
	flow->to.direction = TO_POD;
	flow->backend_id = backend_id;
	flow->last_seen_seconds = now;
	flow->created_seconds = now;
	flow->ifindex = packet->ifindex;
	if (backend_id) {
		struct backend *backend = backends.lookup(&backend_id);

		if (!backend || backend->state == BACKEND_FREE)
			return VERDICT_DROPPED_INTERNAL;
		flow->to.destination = backend->address;
		flow->to.destination_port_be = backend->port_be;
		flow->epoch = backend->epoch;
		flow->service_id = backend->service_id;
		if (same_address(&backend->address, &packet->tuple.source)) {
			/*
			 * A pod drops a packet from itself as a martian. From the VIP it is none, and answers meet us.
			 */
			flow->to.source = packet->tuple.destination;
			flow->to.direction = FROM_POD;
			flow->flags = FLOW_HAIRPIN;
		}
	}
	if (backend_id && collides_with_socket(packet, &flow->to))
		flow->to.source_port_be = random_source_port();
	enum verdict verdict = insert_reply(flow, &packet->tuple, now);
	if (verdict == VERDICT_BALANCED && flows.update((struct tuple *)&packet->tuple, flow))
		verdict = VERDICT_DROPPED_FLOW_TABLE_FULL;
	if (packet->link)
		note_made(&packet->link->flows);
	return verdict;
}
