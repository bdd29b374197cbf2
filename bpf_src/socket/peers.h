/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Whom a socket talks to through a VIP. The kernel keeps it with the socket and frees it with the socket: `connections`
 * for TCP and connected UDP, `peers` for the datagrams of unconnected UDP.
 */
struct peers {
	struct bpf_spin_lock lock;	/* threads may send from one socket at once */
	__u32 pad;
	struct peer peers[PEERS_MAX];
};
ASSERT_OFFSET(peers, peers, 8);

BPF_SK_STORAGE(connections, struct peer);
BPF_SK_STORAGE(peers, struct peers);

/* The peer that `tuple` gets with this backend; its backend_id is 0 if the backend was removed just now. */
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

/* The peer that this socket has for the tuple's destination; its vip_port_be is 0 if it has none, or an expired one. */
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

/*
 * True if the peer's backend may be used. Its address is compared, too: tables that are filled anew give ids and epochs
 * anew, and a socket's storage outlasts the tables.
 */
static __always_inline bool is_alive(const struct peer *peer)
{
	struct backend *backend = backends.lookup((__u32 *)&peer->backend_id);

	return backend && backend->epoch == peer->epoch && is_backend_of(peer, &backend->address, backend->port_be) &&
	       (backend->state == BACKEND_USABLE || backend->state == BACKEND_KEEP);
}

/*
 * Store `peer` instead of the peer that its VIP had before. If the socket already has the same backend behind another
 * VIP, answers could not be told apart: this VIP is left to the programs at the link for as long as it is used. Returns
 * false in that case, and if there is no room.
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

/* Leave this VIP to the programs at the link for as long as it is used: the datagram may be in the middle of a flow. */
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

/* This socket sends to the backend's own address, too: from now on its VIPs of that backend are left to the link. */
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
 * The peer of this socket whose backend has this address; its vip_port_be is 0 if there is none. An answer refreshes
 * the peer, as it refreshes a flow. Expired peers are skipped: a VIP that is used now may have the same backend.
 */
static __always_inline struct peer peer_behind(struct peers *known, const struct address *address, __be16 port_be,
					       __u32 now)
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

/*
 * True if the socket is connected to this backend. The storage alone does not say so: connect() to AF_UNSPEC ends the
 * connection of a UDP socket and runs no program.
 */
static __always_inline bool is_connected_to(const struct peer *peer, const struct bpf_sock *socket,
					    const struct address *address, __be16 port_be)
{
	return peer && socket->dst_port && is_backend_of(peer, address, port_be);
}
