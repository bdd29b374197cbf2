/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The socket fast path: a pod's socket is led to a backend once, at connect() or at its first datagram, and no packet is
 * touched. The application goes on seeing the VIP as its peer.
 *
 * What a socket was told lives in its own storage and is freed with it: `connections` for TCP and connected UDP, `peers` for
 * the datagrams of unconnected UDP. Whatever is not decided here keeps its destination, and the programs at the pod's link
 * decide it (in mode socket: the node's kube-proxy): what a traffic policy drops, refusals of datagrams, and frontends that
 * ask who the client is (affinity, source ranges), for the kernel chooses a socket's address after connect().
 *
 * IPv4-mapped IPv6 addresses are IPv4's: of the two units that IPv6's hooks run, that of IPv4 takes them (`…_mapped`) and
 * that of IPv6 leaves them.
 */
#define PERMIT 1
#define REFUSE 0

enum address_form {
	PLAIN,
	MAPPED,		/* ::ffff:a.b.c.d */
};

struct peers {
	struct bpf_spin_lock lock;	/* threads may send from one socket at once */
	__u32 pad;
	struct peer peers[PEERS_MAX];
};
ASSERT_OFFSET(peers, peers, 8);

/* BCC has no macro for a pinned storage. */
#define SOCKET_STORAGE(name, type) \
	struct name##_table_t { \
		int key; \
		type leaf; \
		void *(*sk_storage_get)(void *, void *, int); \
		int (*sk_storage_delete)(void *); \
		__u32 flags; \
	}; \
	__attribute__((section("maps/sk_storage:" FAMILY_PIN(#name)))) struct name##_table_t name = { \
		.flags = BPF_F_NO_PREALLOC, \
	}; \
	BPF_ANNOTATE_KV_PAIR(name, int, type)

SOCKET_STORAGE(connections, struct peer);
SOCKET_STORAGE(peers, struct peers);

static __always_inline bool is_mapped(const struct bpf_sock_addr *call)
{
	return !call->user_ip6[0] && !call->user_ip6[1] && call->user_ip6[2] == htonl(0xffff);
}

#if IP_FAMILY == 4

static __always_inline bool is_our_family(const struct bpf_sock_addr *call, enum address_form form)
{
	return form == PLAIN || is_mapped(call);
}

static __always_inline struct address address_of(const struct bpf_sock_addr *call, enum address_form form)
{
	struct address address = { .words = { form == PLAIN ? call->user_ip4 : call->user_ip6[3] } };

	return address;
}

static __always_inline void set_address(struct bpf_sock_addr *call, enum address_form form, const struct address *address)
{
	if (form == PLAIN)
		call->user_ip4 = address->words[0];
	else
		call->user_ip6[3] = address->words[0];
}

#else

static __always_inline bool is_our_family(const struct bpf_sock_addr *call, enum address_form form)
{
	return !is_mapped(call);
}

static __always_inline struct address address_of(const struct bpf_sock_addr *call, enum address_form form)
{
	struct address address = {
		.words = { call->user_ip6[0], call->user_ip6[1], call->user_ip6[2], call->user_ip6[3] },
	};

	return address;
}

static __always_inline void set_address(struct bpf_sock_addr *call, enum address_form form, const struct address *address)
{
	call->user_ip6[0] = address->words[0];
	call->user_ip6[1] = address->words[1];
	call->user_ip6[2] = address->words[2];
	call->user_ip6[3] = address->words[3];
}

#endif

/* What will be the socket's tuple, as far as it is known: the kernel has yet to choose the source, and most often its port. */
static __always_inline struct tuple tuple_of(const struct bpf_sock_addr *call, enum address_form form)
{
	struct bpf_sock *socket = call->sk;
	struct tuple tuple = {
		.destination = address_of(call, form),
		.source_port_be = htons(socket->src_port),
		.destination_port_be = call->user_port,
		.protocol = call->protocol,
		.direction = AT_SOCKET,
	};

	return tuple;
}

/* Sockets in the host's own network namespace are its kube-proxy's. */
static __always_inline bool is_pods(struct bpf_sock_addr *call)
{
	struct settings *live = live_settings();

	return live && bpf_get_netns_cookie(call) != live->host_netns_cookie;
}

/*
 * Is a datagram to a destination that this socket is not known to talk to the first of its flow? Not necessarily where the
 * programs have been attached, or switched on, less than a flow's time ago.
 */
static __always_inline bool begins_flow(__u32 now)
{
	struct settings *live = live_settings();

	return live && live->switches & SWITCH_SOCKET && !is_older(now, live->datagrams_since_seconds, 0);
}

/* A part of an MPTCP connection, whose own socket would show the backend. */
static __always_inline bool is_mptcp(struct bpf_sock *socket)
{
#if MPTCP_IS_TOLD
	return bpf_skc_to_mptcp_sock(socket);
#else
	return false;
#endif
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

/* The peer that `tuple` gets with this backend; its backend_id is 0 where that has just been given up. */
static __always_inline struct peer peer_with(const struct tuple *tuple, __u32 backend_id, __u32 now)
{
	struct backend *backend = backends.lookup(&backend_id);
	struct peer peer = {
		.vip = tuple->destination,
		.vip_port_be = tuple->destination_port_be,
		.last_used_seconds = now,
	};

	if (backend && backend->state != BACKEND_FREE) {
		peer.backend = backend->address;
		peer.backend_port_be = backend->port_be;
		peer.backend_id = backend_id;
		peer.epoch = backend->epoch;
	}
	return peer;
}

static __always_inline bool is_vip_of(const struct peer *peer, const struct address *address, __be16 port_be)
{
	return peer->vip_port_be == port_be && same_address(&peer->vip, address);
}

static __always_inline bool is_backend_of(const struct peer *peer, const struct address *address, __be16 port_be)
{
	return peer->backend_id && peer->backend_port_be == port_be && same_address(&peer->backend, address);
}

static __always_inline void lead_to_backend(struct bpf_sock_addr *call, enum address_form form, const struct peer *peer)
{
	set_address(call, form, &peer->backend);
	call->user_port = peer->backend_port_be;
}

static __always_inline void show_vip(struct bpf_sock_addr *call, enum address_form form, const struct peer *peer)
{
	set_address(call, form, &peer->vip);
	call->user_port = peer->vip_port_be;
}

/* Sockets have processes for which to wait: unlike at tc, another one may count on this processor meanwhile. */
static __always_inline void observe_call(const struct tuple *tuple, const struct peer *peer, enum verdict verdict)
{
	__u32 index = verdict;
	struct counter *counter = counters.lookup(&index);
	struct settings *live = live_settings();

	if (counter)
		__sync_fetch_and_add(&counter->packets, 1);
	if (!live || live->events_level == EVENTS_OFF)
		return;
	struct tuple to = *tuple;
	if (peer) {
		to.destination = peer->backend;
		to.destination_port_be = peer->backend_port_be;
	}
	tell(tuple, &to, verdict, 0, 0);
}

/* A connect() that a frontend without a backend refuses: what the RST would have told, without a packet. */
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
	connections.sk_storage_delete(socket); /* of an earlier connect(): one that failed, or UDP's */
	if (!is_our_family(call, form) || (call->protocol != IPPROTO_TCP && call->protocol != IPPROTO_UDP))
		return PERMIT;
	if (!is_on(SWITCH_SOCKET) || !is_pods(call) || is_mptcp(socket))
		return PERMIT;
	/* Two sockets with one port may be connected to two VIPs of one backend: the programs at the link tell them apart. */
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

/* Where this socket's datagrams to the tuple's destination go by now; vip_port_be is 0 where none has gone there lately. */
static __always_inline struct peer known_peer(struct peers *known, const struct tuple *tuple, __u32 now)
{
	struct peer found = {};

	bpf_spin_lock(&known->lock);
#pragma unroll
	for (int i = 0; i < PEERS_MAX; i++) {
		struct peer *peer = &known->peers[i];

		if (!is_vip_of(peer, &tuple->destination, tuple->destination_port_be))
			continue;
		if (!is_older(peer->last_used_seconds, now, TIMEOUT_UDP_ESTABLISHED)) {
			peer->last_used_seconds = now;
			found = *peer;
		}
		break;
	}
	bpf_spin_unlock(&known->lock);
	return found;
}

/* By its address, too: tables that are filled anew give ids and epochs anew, and a socket's storage outlasts them. */
static __always_inline bool is_alive(const struct peer *peer)
{
	struct backend *backend = backends.lookup((__u32 *)&peer->backend_id);

	return backend && backend->epoch == peer->epoch && is_backend_of(peer, &backend->address, backend->port_be) &&
	       (backend->state == BACKEND_USABLE || backend->state == BACKEND_KEEP);
}

/*
 * Remember `peer`, in the place of what its VIP had before. A backend that the socket has behind another VIP already can't
 * be told from it when it answers: this VIP is left to the programs at the link, for as long as it is used.
 * Returns false where that is so, and where there is no room.
 */
static __always_inline bool remember(struct peers *known, struct peer *peer, __u32 now)
{
	struct peer *place = NULL;
	bool is_twin = false;

	bpf_spin_lock(&known->lock);
#pragma unroll
	for (int i = 0; i < PEERS_MAX; i++) {
		struct peer *other = &known->peers[i];
		bool is_same = is_vip_of(other, &peer->vip, peer->vip_port_be);
		bool is_over = !other->vip_port_be || is_older(other->last_used_seconds, now, TIMEOUT_UDP_ESTABLISHED);

		if (is_same || (is_over && !place))
			place = other;
		if (!is_same && !is_over && is_backend_of(other, &peer->backend, peer->backend_port_be))
			is_twin = true;
	}
	if (is_twin)
		peer->backend_id = 0;
	if (place)
		*place = *peer;
	bpf_spin_unlock(&known->lock);
	return place && !is_twin;
}

/* What may be in mid-flow stays where it is, for as long as it is used. */
static __always_inline int leave_to_link(struct bpf_sock *socket, const struct tuple *tuple, __u32 now)
{
	struct peer left = {
		.vip = tuple->destination,
		.vip_port_be = tuple->destination_port_be,
		.last_used_seconds = now,
	};
	struct peers *known;

	if (!find_frontend(tuple))
		return PERMIT;
	known = peers.sk_storage_get(socket, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (known)
		remember(known, &left, now);
	return PERMIT;
}

/* A datagram to a backend's own address, which this socket has behind a VIP too: from now on the VIP is left alone. */
static __always_inline void give_up_vips_of(struct peers *known, const struct tuple *tuple)
{
	bpf_spin_lock(&known->lock);
#pragma unroll
	for (int i = 0; i < PEERS_MAX; i++) {
		if (is_backend_of(&known->peers[i], &tuple->destination, tuple->destination_port_be))
			known->peers[i].backend_id = 0;
	}
	bpf_spin_unlock(&known->lock);
}

/*
 * Runs for every datagram with an address; those that a connected socket sends to its mapped peer have got one, too, from
 * the kernel.
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
		return PERMIT; /* nobody else's answer would reach a connected socket */
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

/*
 * The peer whose backend `address` is, among those of the socket's datagrams by now; vip_port_be is 0 where none is. An
 * answer keeps it, as it keeps a flow. What is older may have its backend in common with the VIP that is used now.
 */
static __always_inline struct peer peer_behind(struct peers *known, const struct address *address, __be16 port_be, __u32 now)
{
	struct peer found = {};

	bpf_spin_lock(&known->lock);
#pragma unroll
	for (int i = 0; i < PEERS_MAX; i++) {
		struct peer *peer = &known->peers[i];

		if (!is_backend_of(peer, address, port_be) ||
		    is_older(peer->last_used_seconds, now, TIMEOUT_UDP_ESTABLISHED))
			continue;
		peer->last_used_seconds = now;
		found = *peer;
		break;
	}
	bpf_spin_unlock(&known->lock);
	return found;
}

/* The storage of a UDP socket outlasts its connection: connect() to AF_UNSPEC ends that and runs no program. */
static __always_inline bool is_connected_to(const struct peer *peer, const struct bpf_sock *socket,
					    const struct address *address, __be16 port_be)
{
	return peer && socket->dst_port && is_backend_of(peer, address, port_be);
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
	/* Connected, and to no VIP: what it has sent to before is no matter any more. */
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

/* The kernel hands a datagram to a mapped address to IPv4's hook: there is no sendmsg_mapped. */
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

#if LISTS_SOCKETS

/* BCC declares it with half of its result. */
static __u64 (*get_socket_cookie)(void *socket) = (void *)BPF_FUNC_get_socket_cookie;

/* The head of struct bpf_iter__tcp and of struct bpf_iter__udp of the kernel. */
struct socket_walk {
	struct {
		void *seq_file;
	} *meta;
	void *socket;
};

static __always_inline int list_socket(struct socket_walk *walk)
{
	void *socket = walk->socket;
	struct peer *peer = socket ? connections.sk_storage_get(socket, NULL, 0) : NULL;

	if (!peer)
		return 0;
	struct listed_socket listed = {
		.cookie = get_socket_cookie(socket),
		.backend_id = peer->backend_id,
		.epoch = peer->epoch,
	};
	bpf_seq_write(walk->meta->seq_file, &listed, sizeof(listed));
	return 0;
}

/* Read by the daemon, through BPF iterators: what was led to a backend in the network namespace where they are made. */
int bpf_iter__tcp(struct socket_walk *walk)
{
	return list_socket(walk);
}

int bpf_iter__udp(struct socket_walk *walk)
{
	return list_socket(walk);
}

#endif
