/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The two steps of a packet between pods: out of the pod that sends it, and into the pod that receives it. Each ends in
 * a verdict.
 */

/* The verdict on a packet without a tuple: an ICMP error may quote a tuple, everything else is left to the host. */
static __always_inline enum verdict leave(const struct packet *packet)
{
	switch (packet->kind) {
	case PACKET_ICMP_ERROR:
		packet->skb->cb[ARGUMENT_DIRECTION] = packet->tuple.direction;
		programs.call(packet->skb, PROGRAM_ICMP_ERROR);
		return VERDICT_DROPPED_INTERNAL;
	case PACKET_FRAGMENT:
		programs.call(packet->skb, packet->tuple.direction == FROM_POD ? PROGRAM_FRAGMENT_FROM_POD
									       : PROGRAM_FRAGMENT_TO_POD);
		return VERDICT_DROPPED_INTERNAL;
	case PACKET_MALFORMED:
		return VERDICT_MALFORMED;
	default:
		return VERDICT_UNTOUCHED;
	}
}

/*
 * The state of the backend that the flow was made with. If the epoch or the Service differs, the id was given to
 * another backend or the tables were filled anew: the flow's backend has left or is gone, and nobody knows which.
 */
static __always_inline enum backend_state state_of_backend(const struct flow *flow)
{
	if (!flow->backend_id)
		return BACKEND_USABLE; /* the flow is of no Service: nobody will ever say otherwise */
	struct backend *backend = backends.lookup((__u32 *)&flow->backend_id);

	if (!backend || backend->epoch != flow->epoch || backend->service_id != flow->service_id)
		return BACKEND_LEFT;
	return backend->state;
}

/* What becomes of a packet's flow: the packet goes on with it, a backend is chosen anew, or the flow is reset. */
enum fate { FLOW_GOES_ON, FLOW_BEGINS_ANEW, FLOW_IS_RESET };

static __always_inline enum fate fate_of(const struct packet *packet, const struct flow *flow, __u32 now)
{
	if (is_over(packet, flow, now))
		return FLOW_BEGINS_ANEW;
	if (flow->flags & FLOW_REPLY)
		return FLOW_GOES_ON;
	enum backend_state state = state_of_backend(flow);
	bool stays = state == BACKEND_USABLE || state == BACKEND_KEEP;
	if (packet->protocol == IPPROTO_UDP)
		return stays ? FLOW_GOES_ON : FLOW_BEGINS_ANEW;
	if (is_syn(packet))
		return state == BACKEND_USABLE || (stays && flow->state == FLOW_NEW) ? FLOW_GOES_ON : FLOW_BEGINS_ANEW;
	return state == BACKEND_GONE ? FLOW_IS_RESET : FLOW_GOES_ON;
}

/*
 * True while the daemon imports the UDP flows that kube-proxy translates: a datagram without a flow may belong to one
 * that is not imported yet. Such a datagram is left to the host, and so are all that follow it.
 */
static __always_inline bool stays_with_host(const struct packet *packet, const struct choice *choice)
{
	return packet->protocol == IPPROTO_UDP && choice->verdict == VERDICT_BALANCED && is_on(SWITCH_UDP_STAYS);
}

/* The packet is the first one of a flow, or belongs to none. */
static __always_inline enum verdict begin_flow(struct packet *packet)
{
	if (packet->protocol != IPPROTO_UDP && !is_syn(packet)) {
		hand_to_predecessor(packet);
		return VERDICT_MIDSTREAM;
	}

	__u32 now = now_seconds();
	struct choice choice = { .verdict = VERDICT_UNTOUCHED };
	if (is_on(SWITCH_TC))
		choice = choose_backend(&packet->tuple, now);
	if (stays_with_host(packet, &choice))
		choice = (struct choice){ .verdict = VERDICT_TRANSLATED };
	else if (choice.verdict == VERDICT_UNTOUCHED && collides_with_flow(packet, now))
		choice.verdict = VERDICT_TRANSLATED;
	else if (choice.verdict != VERDICT_BALANCED)
		return choice.verdict;
	else if (!choice.backend_id)
		return VERDICT_DROPPED_INTERNAL;
	struct flow flow = {};
	enum verdict verdict = create_flow(packet, choice.backend_id, now, &flow);
	if (verdict != VERDICT_BALANCED)
		return verdict;
	return translate(packet, &flow.to) ? choice.verdict : VERDICT_DROPPED_INTERNAL;
}

static __always_inline enum verdict continue_flow(struct packet *packet, struct flow *flow, __u32 now)
{
	touch(packet, flow, now);
	if (!translate(packet, &flow->to))
		return VERDICT_DROPPED_INTERNAL;
	return flow->flags & FLOW_REPLY ? VERDICT_REVERSED : VERDICT_TRANSLATED;
}

static __always_inline enum verdict verdict_from_pod(struct packet *packet)
{
	struct flow *flow = find_flow(packet);
	if (flow) {
		__u32 now = now_seconds();
		enum fate fate = fate_of(packet, flow, now);
		if (fate == FLOW_GOES_ON)
			return continue_flow(packet, flow, now);
		if (fate == FLOW_IS_RESET) {
			/* Our RST ends the flow. Nobody else will, and the flow would count as live for days. */
			packet->tcp_flags |= TCP_RST;
			touch(packet, flow, now);
			return VERDICT_RESET_BACKEND_GONE;
		}
	}
	enum verdict verdict = begin_flow(packet);
	/* This connection gets no flow: remove the old entry, or later packets would match it. */
	if (flow && verdict == VERDICT_UNTOUCHED)
		forget(flow, &packet->tuple);
	return verdict;
}

static __always_inline enum verdict verdict_to_pod(struct packet *packet)
{
	struct flow *flow = find_flow(packet);
	if (flow) {
		__u32 now = now_seconds();
		if (!is_over(packet, flow, now))
			return continue_flow(packet, flow, now);
		/* The former backend connects to the port that was the client's. */
		if (is_syn(packet))
			forget(flow, &packet->tuple);
	}
	hand_to_predecessor(packet);
	return VERDICT_UNTOUCHED;
}
