/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Flows: two entries a connection, one for each direction, that mirror each other (see struct flow).
 *
 * Life of a flow: made by the first packet from the pod; ESTABLISHED once the backend has answered; CLOSING and CLOSED as FIN
 * and RST are seen; not found any more when its time-out has passed or, for a closed one, when a SYN reuses its
 * port. If that begins a connection without a flow, it is removed then: nothing else tells the packets that follow from its
 * own. Nothing has to collect them: an expired entry counts as absent, and the LRU takes it when room is needed.
 *
 * The two entries live in an LRU, which may evict either alone. Once a second a packet of the one that is left puts
 * the other back, so an active connection does not lose half of itself.
 */

/*
 * An upgrade: while the programs that served before these have flows that are not here, packets of no known flow are
 * theirs. They start from the packet as it came, and do not return. Where there are none, this is a jump that is not taken.
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

/* Signed: another processor may have written a second that began after `now` was read. */
static __always_inline bool is_older(__u32 last_seconds, __u32 now, __u32 timeout)
{
	return (__s32)(now - last_seconds) > (__s32)timeout;
}

static __always_inline bool is_expired(const struct flow *flow, __u32 now)
{
	return is_older(flow->last_seen_seconds, now, timeout_of(flow));
}

/* Whether the link of the packet has flows at all: most pods that serve have none. */
static __always_inline bool may_have_flows(const struct packet *packet)
{
	return !packet->link || may_exist(&packet->link->flows);
}

/* The flow of the packet, or NULL. */
static __always_inline struct flow *find_flow(const struct packet *packet)
{
	return may_have_flows(packet) ? flows.lookup((struct tuple *)&packet->tuple) : NULL;
}

/* The entry that mirrors `flow`, whose own key is `key`. */
static __always_inline struct flow mirrored(const struct flow *flow, const struct tuple *key)
{
	struct flow peer = *flow;

	peer.to = reversed(key, key->direction);
	peer.flags ^= FLOW_REPLY;
	return peer;
}

static __always_inline struct tuple peer_key(const struct flow *flow)
{
	return reversed(&flow->to, flow->to.direction);
}

/* Does `flow` mirror the entry at `key`, or has its own key been given to another connection since? */
static __always_inline bool mirrors(const struct flow *flow, const struct tuple *key)
{
	return same_address(&flow->to.source, &key->destination) && same_address(&flow->to.destination, &key->source) &&
	       flow->to.source_port_be == key->destination_port_be && flow->to.destination_port_be == key->source_port_be;
}

/*
 * Does the packet end an earlier connection from the same port? Before its SYN has been answered nothing ends a connection
 * but the backend's refusal, which is a RST with ACK.
 */
static __always_inline bool ends_earlier(const struct flow *flow, __u8 tcp_flags)
{
	if (flow->state != FLOW_NEW || flow->to.protocol != IPPROTO_TCP || !(tcp_flags & (TCP_FIN | TCP_RST)))
		return false;
	bool is_refusal = flow->flags & FLOW_REPLY && (tcp_flags & (TCP_RST | TCP_ACK)) == (TCP_RST | TCP_ACK);

	return !is_refusal;
}

/*
 * What a packet makes of a flow's state. FINs are kept apart by side: a retransmitted FIN does not close alone. CLOSED is
 * final: who uses the port again begins with a SYN, which makes another flow.
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
 * Note that a packet of `flow` was seen: its state, and once a second its time, on both entries.
 * Two processors may do this at once for one connection: each writes whole values that are right, the later one stays.
 * A late packet of a closed flow whose client's port is in use again finds the new connection at its peer's key: hands off.
 * Or it finds nothing there, for a connection without a flow has the port now: a peer put back would be taken for its own.
 */
static __always_inline void touch(const struct packet *packet, struct flow *flow, __u32 now)
{
	__u8 state = flow->state, flags = flow->flags;

	advance_state(flow, packet->tcp_flags);
	if (flow->last_seen_seconds == now && flow->state == state && flow->flags == flags)
		return;
	flow->last_seen_seconds = now;

	struct tuple key = peer_key(flow);
	struct flow *peer = flows.lookup(&key);
	if (!peer && state != FLOW_CLOSED) {
		struct flow restored = mirrored(flow, &packet->tuple);
		flows.insert(&key, &restored);
	} else if (peer && mirrors(peer, &packet->tuple)) {
		peer->last_seen_seconds = now;
		peer->state = flow->state;
		peer->flags = flow->flags ^ FLOW_REPLY;
	}
}

/* Is `flow`, at the packet's own key, none of its connection's? Its time has passed, or it has ended and another begins. */
static __always_inline bool is_over(const struct packet *packet, const struct flow *flow, __u32 now)
{
	return is_expired(flow, now) || (is_syn(packet) && flow->state == FLOW_CLOSED);
}

/* Remove both entries of `flow`, which stands at `key`. What another connection has at the peer's key stays. */
static __always_inline void forget(const struct flow *flow, const struct tuple *key)
{
	struct tuple other = peer_key(flow);
	struct flow *peer = flows.lookup(&other);

	if (peer && mirrors(peer, key))
		flows.delete(&other);
	flows.delete((struct tuple *)key);
}
