/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Flows: a connection has two entries, one for each direction, that mirror each other (see struct flow).
 *
 * Life of a flow: the first packet from the pod creates it. It is ESTABLISHED once the backend has answered, and
 * CLOSING and CLOSED as FIN and RST are seen. It counts as absent once its time-out has passed or, if it is closed,
 * once a SYN reuses its port. If that SYN begins a connection without a flow, the entries are removed: nothing else
 * would tell the new connection's packets from the old one's. No collector is needed: the LRU evicts expired entries
 * when it needs room.
 *
 * The LRU may evict either entry alone. Once a second a packet of the remaining entry restores the other, so an active
 * connection does not lose half of its flow.
 */

/*
 * During an upgrade, the programs of the generation before may have flows that are not here, so packets without a flow
 * are theirs. They start from the packet as it came and do not return. Without a predecessor this call falls through.
 */
static __always_inline void hand_to_predecessor(const struct packet *packet)
{
	if (packet->is_at_uplink)
		predecessor.call(packet->skb, PREDECESSOR_FROM_UPLINK);
	else if (packet->tuple.direction == FROM_POD)
		predecessor.call(packet->skb, PREDECESSOR_FROM_POD);
	else
		predecessor.call(packet->skb, PREDECESSOR_TO_POD);
}

#define NANOSECONDS_PER_SECOND 1000000000ull

static __always_inline __u32 now_seconds(void)
{
	return COARSE_CLOCK() / NANOSECONDS_PER_SECOND;
}

static __always_inline __u32 tcp_timeout(__u8 state)
{
	switch (state) {
	case FLOW_NEW:
		return TIMEOUT_TCP_NEW;
	case FLOW_ESTABLISHED:
		return TIMEOUT_TCP_ESTABLISHED;
	case FLOW_CLOSING:
		return TIMEOUT_TCP_CLOSING;
	default:
		return TIMEOUT_TCP_CLOSED;
	}
}

static __always_inline __u32 timeout_of(const struct flow *flow)
{
	if (flow->to.protocol == IPPROTO_TCP)
		return tcp_timeout(flow->state);
	if (flow->to.protocol == IPPROTO_UDP)
		return flow->state == FLOW_NEW ? TIMEOUT_UDP_NEW : TIMEOUT_UDP_ESTABLISHED;
	if (flow->state == FLOW_CLOSED)
		return TIMEOUT_SCTP_CLOSED;
	return flow->state == FLOW_NEW ? TIMEOUT_SCTP_NEW : TIMEOUT_SCTP_ESTABLISHED;
}

/* The difference is signed: another processor may have written a second that began after `now` was read. */
static __always_inline bool is_older(__u32 last_seconds, __u32 now, __u32 timeout)
{
	return (__s32)(now - last_seconds) > (__s32)timeout;
}

static __always_inline bool is_expired(const struct flow *flow, __u32 now)
{
	return is_older(flow->last_seen_seconds, now, timeout_of(flow));
}

/* False if the packet's link certainly has no flow: most pods that serve have none. */
static __always_inline bool may_have_flows(const struct packet *packet)
{
	return !packet->link || may_exist(&packet->link->flows);
}

/* The entry at the packet's tuple, or NULL. */
static __always_inline struct flow *find_flow(const struct packet *packet)
{
	return may_have_flows(packet) ? flows.lookup((struct tuple *)&packet->tuple) : NULL;
}

/* The entry that mirrors `flow`, whose own key is `key`. */
static __always_inline struct flow mirror_of(const struct flow *flow, const struct tuple *key)
{
	struct flow mirror = *flow;

	mirror.to = reversed(key, key->direction);
	mirror.flags ^= FLOW_REPLY;
	return mirror;
}

static __always_inline struct tuple mirror_key(const struct flow *flow)
{
	return reversed(&flow->to, flow->to.direction);
}

/* True if `flow` mirrors the entry at `key`; false if another connection has the mirror's key by now. */
static __always_inline bool mirrors(const struct flow *flow, const struct tuple *key)
{
	return same_address(&flow->to.source, &key->destination) && same_address(&flow->to.destination, &key->source) &&
	       flow->to.source_port_be == key->destination_port_be &&
	       flow->to.destination_port_be == key->source_port_be;
}

/*
 * True if the packet ends an earlier connection from the same port. Before its SYN is answered, a connection ends by
 * the backend's refusal only, which is a RST with ACK.
 */
static __always_inline bool ends_earlier(const struct flow *flow, __u8 tcp_flags)
{
	if (flow->state != FLOW_NEW || flow->to.protocol != IPPROTO_TCP || !(tcp_flags & (TCP_FIN | TCP_RST)))
		return false;
	bool is_refusal = flow->flags & FLOW_REPLY && (tcp_flags & (TCP_RST | TCP_ACK)) == (TCP_RST | TCP_ACK);

	return !is_refusal;
}

/*
 * Advance the state of a flow by a packet. Each side's FIN is kept apart, so a retransmitted FIN does not close the
 * flow. CLOSED is final: whoever uses the port again begins with a SYN, which creates another flow.
 */
static __always_inline void advance_state(struct flow *flow, __u8 tcp_flags)
{
	bool from_backend = flow->flags & FLOW_REPLY;

	if (flow->state == FLOW_CLOSED || ends_earlier(flow, tcp_flags))
		return;
	if (tcp_flags & TCP_FIN)
		flow->flags |= from_backend ? FLOW_FIN_BACKEND : FLOW_FIN_CLIENT;
	if (tcp_flags & TCP_RST)
		flow->state = FLOW_CLOSED;
	else if ((flow->flags & (FLOW_FIN_CLIENT | FLOW_FIN_BACKEND)) == (FLOW_FIN_CLIENT | FLOW_FIN_BACKEND))
		flow->state = FLOW_CLOSED;
	else if (tcp_flags & TCP_FIN)
		flow->state = FLOW_CLOSING;
	else if (flow->state == FLOW_NEW && from_backend)
		flow->state = FLOW_ESTABLISHED;
}

/*
 * Record that a packet of `flow` was seen, in both entries: its state, and once a second its time. Two processors may
 * do this at once for one connection: each writes whole and right values, and the later ones stay.
 *
 * A late packet of a closed flow may find another connection at the mirror's key, because the client's port is in use
 * again: leave that alone. If nothing stands at the mirror's key, do not restore it: a connection without a flow may
 * use the port by now and would match it.
 */
static __always_inline void touch(const struct packet *packet, struct flow *flow, __u32 now)
{
	__u8 state = flow->state, flags = flow->flags;

	advance_state(flow, packet->tcp_flags);
	if (flow->last_seen_seconds == now && flow->state == state && flow->flags == flags)
		return;
	flow->last_seen_seconds = now;

	struct tuple key = mirror_key(flow);
	struct flow *mirror = flows.lookup(&key);
	if (!mirror && state != FLOW_CLOSED) {
		struct flow restored = mirror_of(flow, &packet->tuple);
		flows.insert(&key, &restored);
	} else if (mirror && mirrors(mirror, &packet->tuple)) {
		mirror->last_seen_seconds = now;
		mirror->state = flow->state;
		mirror->flags = flow->flags ^ FLOW_REPLY;
	}
}

/* True if `flow`, found at the packet's key, is of an earlier connection: it timed out, or closed and a SYN follows. */
static __always_inline bool is_over(const struct packet *packet, const struct flow *flow, __u32 now)
{
	return is_expired(flow, now) || (is_syn(packet) && flow->state == FLOW_CLOSED);
}

/* Remove both entries of `flow`, which stands at `key`. An entry of another connection at the mirror's key stays. */
static __always_inline void forget(const struct flow *flow, const struct tuple *key)
{
	struct tuple other = mirror_key(flow);
	struct flow *mirror = flows.lookup(&other);

	if (mirror && mirrors(mirror, key))
		flows.delete(&other);
	flows.delete((struct tuple *)key);
}
