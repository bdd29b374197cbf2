/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The programs at the root cgroup, for TCP sockets. They lead a pod's socket to a backend once, at connect(), and no
 * packet is touched. The application goes on seeing the VIP as its peer. UDP is balanced at the pod's link: there,
 * several sockets of one port, answers under way, error queues and a backend that goes come out right.
 *
 * A call that is not decided here keeps its destination, and the programs at the pod's link decide (in mode socket: the
 * node's kube-proxy). These are left to them: packets that a traffic policy drops, and frontends that ask who the client
 * is (affinity, source ranges), because the kernel chooses a socket's address after connect().
 *
 * IPv4-mapped IPv6 addresses are IPv4's. IPv6's hooks run the programs of both families: IPv4's take the mapped
 * addresses (`…_mapped`), and IPv6's leave them alone.
 */

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
	/* An earlier connect() left it: one that failed, or one of UDP, which earlier versions led. */
	connections.sk_storage_delete(socket);
	if (!is_our_family(call, form) || call->protocol != IPPROTO_TCP)
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
		return refuse(&tuple, choice.verdict);
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

int getpeername(struct bpf_sock_addr *call)
{
	return on_getpeername(call, PLAIN);
}

#if IP_FAMILY == 4

int connect_mapped(struct bpf_sock_addr *call)
{
	return on_connect(call, MAPPED);
}

int getpeername_mapped(struct bpf_sock_addr *call)
{
	return on_getpeername(call, MAPPED);
}

#endif
