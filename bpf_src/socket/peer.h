/* SPDX-License-Identifier: GPL-2.0 */
/* Whom a socket talks to through a VIP. The kernel keeps it with the socket and frees it with the socket. */
BPF_SK_STORAGE(connections, struct peer);

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

/*
 * True if the socket is connected to this backend. The storage alone does not say so: connect() to AF_UNSPEC ends a
 * connection and runs no program.
 */
static __always_inline bool is_connected_to(const struct peer *peer, const struct bpf_sock *socket,
					    const struct address *address, __be16 port_be)
{
	return peer && socket->dst_port && peer->backend_port_be == port_be && same_address(&peer->backend, address);
}
