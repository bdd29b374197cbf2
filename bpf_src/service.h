/* SPDX-License-Identifier: GPL-2.0 */
/*
 * LoadBalance: from a VIP to a backend, and the flow that remembers the choice.
 *
 * The controller replaces a set by writing its slots to a fresh range and then the frontend in one write, so `slot_base` and
 * `slot_count` always belong together, and a slot that is read here stays valid for longer than a packet takes.
 */
#define SOURCE_PORT_ATTEMPTS 8
#define SOURCE_PORT_FIRST 16384	/* these are below those that the kernel gives to sockets */
#define SOURCE_PORT_MASK 0x3fff
#define GOLDEN_RATIO_32 0x9e3779b9

/* What balancing decided. `backend_id` counts with VERDICT_BALANCED only; any other verdict says why there is none. */
struct choice {
	enum verdict verdict;
	__u32 backend_id;
};

static __always_inline struct frontend *find_frontend(const struct tuple *tuple)
{
	struct frontend_key key = {
		.address = tuple->destination,
		.port_be = tuple->destination_port_be,
		.protocol = tuple->protocol,
	};

	return frontends.lookup(&key);
}

static __always_inline bool is_vip(const struct tuple *tuple)
{
	struct frontend_key key = { .address = tuple->destination };

	return frontends.lookup(&key);
}

static __always_inline bool in_source_range(const struct frontend *frontend, const struct tuple *tuple)
{
	struct source_range_key key = {
		.prefix_bits = 32 + 8 * ADDRESS_BYTES,
		.service_id = frontend->service_id,
		.client = tuple->source,
	};

	return source_ranges.lookup(&key);
}

/* The same connection always gets the same number; Maglev needs no more of a hash. */
static __always_inline __u32 tuple_hash(const struct tuple *tuple)
{
	__u32 hash = ((__u32)tuple->source_port_be << 16) ^ tuple->destination_port_be ^ tuple->protocol;

#pragma unroll
	for (int i = 0; i < ADDRESS_WORDS; i++) {
		hash = (hash ^ tuple->source.words[i]) * GOLDEN_RATIO_32;
		hash = (hash ^ (hash >> 15) ^ tuple->destination.words[i]) * GOLDEN_RATIO_32;
	}
	return hash ^ (hash >> 16);
}

/* The backend that this client used last, if it is still usable and its time has not run out. */
static __always_inline __u32 affine_backend(const struct frontend *frontend, const struct affinity_key *key, __u32 now)
{
	struct affinity *last = affinity.lookup((struct affinity_key *)key);

	if (!last || is_older(last->last_used_seconds, now, frontend->affinity_seconds))
		return 0;
	struct backend *backend = backends.lookup(&last->backend_id);
	if (!backend || backend->epoch != last->epoch || backend->service_id != frontend->service_id ||
	    backend->state != BACKEND_USABLE)
		return 0;
	return last->backend_id;
}

static __always_inline __u32 pick_backend(const struct frontend *frontend, const struct tuple *tuple)
{
	/* A socket's port may have yet to be chosen: then any number is as good as its hash. */
	bool by_hash = frontend->flags & FRONTEND_MAGLEV && tuple->source_port_be;
	__u32 number = by_hash ? tuple_hash(tuple) : bpf_get_prandom_u32();
	__u32 index = frontend->slot_base + (__u32)(((__u64)number * frontend->slot_count) >> 32);
	__u32 *backend_id = slots.lookup(&index);

	return backend_id ? *backend_id : 0;
}

/* A backend of `frontend`, which is that of the tuple's destination; NULL where there is none. */
static __always_inline struct choice choose_from(const struct frontend *frontend, const struct tuple *tuple, __u32 now)
{
	struct choice choice = {};

	if (!frontend) {
		choice.verdict = is_vip(tuple) ? VERDICT_REJECTED_UNDEFINED_PORT : VERDICT_UNTOUCHED;
		return choice;
	}
	if (frontend->flags & FRONTEND_SOURCE_RANGES && !in_source_range(frontend, tuple)) {
		choice.verdict = VERDICT_DROPPED_SOURCE_RANGE;
		return choice;
	}
	if (!frontend->slot_count) {
		choice.verdict = frontend->flags & FRONTEND_DROP ? VERDICT_DROPPED_TRAFFIC_POLICY
								 : VERDICT_REJECTED_NO_BACKEND;
		return choice;
	}
	choice.verdict = VERDICT_BALANCED;
	if (!frontend->affinity_seconds) {
		choice.backend_id = pick_backend(frontend, tuple);
		return choice;
	}

	struct affinity_key key = { .client = tuple->source, .service_id = frontend->service_id };
	choice.backend_id = affine_backend(frontend, &key, now) ?: pick_backend(frontend, tuple);
	struct backend *backend = backends.lookup(&choice.backend_id);
	if (backend) {
		struct affinity used = {
			.backend_id = choice.backend_id,
			.epoch = backend->epoch,
			.last_used_seconds = now,
		};
		affinity.update(&key, &used);
	}
	return choice;
}

static __always_inline struct choice choose_backend(const struct tuple *tuple, __u32 now)
{
	return choose_from(find_frontend(tuple), tuple, now);
}

/* Has the client a connection without a VIP that has this tuple already? The socket path makes such ones, and so may the pod. */
static __always_inline bool is_tuple_of_a_socket(const struct packet *packet, const struct tuple *tuple)
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

/* May the entry that stands at our reply's key be replaced? It is what is left of this very connection, or it is over. */
static __always_inline bool is_replaceable(const struct flow *existing, const struct tuple *key, __u32 now)
{
	return mirrors(existing, key) || existing->state == FLOW_CLOSED || is_expired(existing, now);
}

/*
 * Claim the reply's key. One backend behind two VIPs, reached from one client port, would have one reply tuple for
 * two connections: the second gets another source port.
 *
 * Unrolled, because verifiers up to 6.1 take a loop only if its last instruction is a jump, which no source text can promise.
 */
static __always_inline enum verdict insert_reply(struct flow *flow, const struct tuple *key, __u32 now)
{
	struct flow *existing = NULL;
	bool is_free = false;

#pragma unroll
	for (int i = 0; i < SOURCE_PORT_ATTEMPTS; i++) {
		struct tuple reply_key = peer_key(flow);

		existing = flows.lookup(&reply_key);
		is_free = !existing || is_replaceable(existing, key, now);
		if (is_free)
			break;
		flow->to.source_port_be = random_source_port();
	}
	if (!is_free)
		return VERDICT_DROPPED_NO_SOURCE_PORT;

	struct tuple reply_key = peer_key(flow);
	struct flow reply = mirrored(flow, key);
	long error = existing ? flows.update(&reply_key, &reply) : flows.insert(&reply_key, &reply);
	if (error == -EEXIST) /* another processor was faster */
		return VERDICT_DROPPED_NO_SOURCE_PORT;
	return error ? VERDICT_DROPPED_FLOW_TABLE_FULL : VERDICT_BALANCED;
}

/*
 * Would the answers to this packet, which is for no Service, be taken for those of a flow? Its client talks to one backend
 * through a VIP and without it, from one port. What is left of a flow that is over is forgotten here.
 */
static __always_inline bool has_answers_like_a_flow(const struct packet *packet, __u32 now)
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
 * Make `flow` for a packet whose backend has been chosen; with backend 0 its destination stays, and only its source port
 * changes. The reply's entry first: no reply may come before it is known.
 */
static __always_inline enum verdict create_flow(const struct packet *packet, __u32 backend_id, __u32 now, struct flow *flow)
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
			/* A packet from itself is a martian to the pod; from the VIP it is not, and the answer comes back to us. */
			flow->to.source = packet->tuple.destination;
			flow->to.direction = FROM_POD;
			flow->flags = FLOW_HAIRPIN;
		}
	}
	if (backend_id && is_tuple_of_a_socket(packet, &flow->to))
		flow->to.source_port_be = random_source_port();
	enum verdict verdict = insert_reply(flow, &packet->tuple, now);
	if (verdict == VERDICT_BALANCED && flows.update((struct tuple *)&packet->tuple, flow))
		verdict = VERDICT_DROPPED_FLOW_TABLE_FULL;
	if (packet->link)
		note_made(&packet->link->flows);
	return verdict;
}
