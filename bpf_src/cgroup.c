/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The programs at the root cgroup, for sockets. They lead a pod's socket to a backend once, at connect() or at its
 * first datagram, and no packet is touched. The application goes on seeing the VIP as its peer.
 *
 * A call that is not decided here keeps its destination, and the programs at the pod's link decide (in mode socket: the
 * node's kube-proxy). These are left to them: packets that a traffic policy drops, refusals of datagrams, and frontends
 * that ask who the client is (affinity, source ranges), because the kernel chooses a socket's address after connect().
 *
 * IPv4-mapped IPv6 addresses are IPv4's. IPv6's hooks run the programs of both families: IPv4's take the mapped
 * addresses (`…_mapped`), and IPv6's leave them alone.
 */

/*
 * True if a datagram to a destination that the socket's storage does not know is the first one of its flow. It may be a
 * later one while the programs have been attached, or switched on, for less than a flow's time-out.
 */
static __always_inline bool begins_flow(__u32 now)
{
	struct settings *live = live_settings();

	return live && live->switches & SWITCH_SOCKET && !is_older(now, live->datagrams_since_seconds, 0);
}

static __always_inline struct choice choose_at_socket(const struct tuple *tuple, __u32 now)
{
	const struct frontend *frontend = find_frontend(tuple);

	if (frontend && (frontend->affinity_seconds || frontend->flags & FRONTEND_SOURCE_RANGES)) {
		struct choice left = { .verdict = VERDICT_UNTOUCHED };
		return left;
	}
	return choose_from(frontend, tuple, now);
}

static __always_inline void observe_call(const struct tuple *tuple, const struct peer *peer, enum verdict verdict)
{
	__u32 index = verdict;
	struct counter *counter = counters.lookup(&index);
	struct settings *live = live_settings();

	count(counter, NULL);
	if (!live || live->events_level == EVENTS_OFF)
		return;
	struct tuple to = *tuple;
	if (peer) {
		to.destination = peer->backend;
		to.destination_port_be = peer->backend_port_be;
	}
	tell(tuple, &to, verdict, 0, 0);
}

/* Refuse a connect() to a frontend without a backend: the application learns what a RST would say, without a packet. */
static __always_inline int refuse(const struct tuple *tuple, enum verdict verdict)
{
#if REFUSES_AT_CONNECT
	observe_call(tuple, NULL, verdict);
	bpf_set_retval(-ECONNREFUSED);
	return REFUSE;
#else
	return PERMIT;
#endif
}

/* Remember that a socket was led to this backend: see the map `led`. */
static __always_inline void note_led(const struct peer *peer)
{
	__u32 *noted = led.lookup((__u32 *)&peer->backend_id);

	if (noted && *noted != peer->epoch + 1)
		*noted = peer->epoch + 1;
}

static __always_inline int on_connect(struct bpf_sock_addr *call, enum address_form form)
{
	struct bpf_sock *socket = call->sk;

	if (!socket)
		return PERMIT;
	connections.sk_storage_delete(socket); /* an earlier connect() left it: a failed one, or one of UDP */
	if (!is_our_family(call, form) || (call->protocol != IPPROTO_TCP && call->protocol != IPPROTO_UDP))
		return PERMIT;
	if (!is_on(SWITCH_SOCKET) || !is_pods(call) || is_mptcp(socket))
		return PERMIT;
	/* Two sockets may share a port and reach one backend by two VIPs: the programs at the link tell them apart. */
	if (socket->src_port)
		return PERMIT;

	__u32 now = now_seconds();
	struct tuple tuple = tuple_of(call, form);
	struct choice choice = choose_at_socket(&tuple, now);
	if (choice.verdict == VERDICT_REJECTED_NO_BACKEND || choice.verdict == VERDICT_REJECTED_UNDEFINED_PORT)
		return tuple.protocol == IPPROTO_TCP ? refuse(&tuple, choice.verdict) : PERMIT;
	if (choice.verdict != VERDICT_BALANCED)
		return PERMIT;
	struct peer peer = peer_with(&tuple, choice.backend_id, now);
	if (!peer.backend_id || !connections.sk_storage_get(socket, &peer, BPF_SK_STORAGE_GET_F_CREATE))
		return PERMIT;
	note_led(&peer);
	lead_to_backend(call, form, &peer);
	observe_call(&tuple, &peer, VERDICT_CONNECTED);
	return PERMIT;
}

/*
 * Runs for every datagram with an address. Datagrams of a connected socket to a mapped peer have an address, too: the
 * kernel adds it.
 */
static __always_inline int on_sendmsg(struct bpf_sock_addr *call, enum address_form form)
{
	struct bpf_sock *socket = call->sk;

	if (!socket || call->protocol != IPPROTO_UDP || !is_our_family(call, form))
		return PERMIT;
	__u32 now = now_seconds();
	struct tuple tuple = tuple_of(call, form);
	if (socket->dst_port) {
		struct peer *connection = connections.sk_storage_get(socket, NULL, 0);
		if (connection && is_vip_of(connection, &tuple.destination, tuple.destination_port_be))
			lead_to_backend(call, form, connection);
		return PERMIT; /* a connected socket would not receive the answer of another peer */
	}
	struct peers *known = peers.sk_storage_get(socket, NULL, 0);
	if (known) {
		struct peer peer = known_peer(known, &tuple, now);
		if (peer.vip_port_be && !peer.backend_id)
			return PERMIT;
		if (peer.vip_port_be && is_alive(&peer)) {
			lead_to_backend(call, form, &peer);
			return PERMIT;
		}
	}
	if (!is_pods(call))
		return PERMIT;
	if (!begins_flow(now))
		return leave_to_link(socket, &tuple, now);

	struct choice choice = choose_at_socket(&tuple, now);
	if (known && choice.verdict == VERDICT_UNTOUCHED)
		give_up_vips_of(known, &tuple);
	if (choice.verdict != VERDICT_BALANCED)
		return PERMIT;
	struct peer peer = peer_with(&tuple, choice.backend_id, now);
	known = peers.sk_storage_get(socket, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!peer.backend_id || !known || !remember(known, &peer, now))
		return PERMIT;
	lead_to_backend(call, form, &peer);
	observe_call(&tuple, &peer, VERDICT_CONNECTED);
	return PERMIT;
}

static __always_inline int on_recvmsg(struct bpf_sock_addr *call, enum address_form form)
{
	struct bpf_sock *socket = call->sk;

	if (!socket || !is_our_family(call, form))
		return PERMIT;
	struct address source = address_of(call, form);
	__be16 port_be = call->user_port;
	struct peer *connection = connections.sk_storage_get(socket, NULL, 0);
	if (is_connected_to(connection, socket, &source, port_be)) {
		show_vip(call, form, connection);
		return PERMIT;
	}
	/* The socket is connected, and to no VIP: destinations of its earlier datagrams do not matter any more. */
	if (socket->dst_port)
		return PERMIT;
	struct peers *known = peers.sk_storage_get(socket, NULL, 0);
	if (!known)
		return PERMIT;
	struct peer peer = peer_behind(known, &source, port_be, now_seconds());
	if (peer.vip_port_be)
		show_vip(call, form, &peer);
	return PERMIT;
}

static __always_inline int on_getpeername(struct bpf_sock_addr *call, enum address_form form)
{
	struct bpf_sock *socket = call->sk;

	if (!socket || !is_our_family(call, form))
		return PERMIT;
	struct address address = address_of(call, form);
	struct peer *connection = connections.sk_storage_get(socket, NULL, 0);
	if (is_connected_to(connection, socket, &address, call->user_port))
		show_vip(call, form, connection);
	return PERMIT;
}

int connect(struct bpf_sock_addr *call)
{
	return on_connect(call, PLAIN);
}

int sendmsg(struct bpf_sock_addr *call)
{
	return on_sendmsg(call, PLAIN);
}

int recvmsg(struct bpf_sock_addr *call)
{
	return on_recvmsg(call, PLAIN);
}

int getpeername(struct bpf_sock_addr *call)
{
	return on_getpeername(call, PLAIN);
}

#if IP_FAMILY == 4

/* There is no sendmsg_mapped: for a datagram to a mapped address the kernel runs IPv4's hook. */
int connect_mapped(struct bpf_sock_addr *call)
{
	return on_connect(call, MAPPED);
}

int recvmsg_mapped(struct bpf_sock_addr *call)
{
	return on_recvmsg(call, MAPPED);
}

int getpeername_mapped(struct bpf_sock_addr *call)
{
	return on_getpeername(call, MAPPED);
}

#endif
