/* SPDX-License-Identifier: GPL-2.0 */
/* The daemon reads these BPF iterators to find the sockets of a network namespace that were led to a backend. */
#if LISTS_SOCKETS

/* BCC declares this helper with a result of 32 bits. */
static __u64 (*get_socket_cookie)(void *socket) = (void *)BPF_FUNC_get_socket_cookie;

/* The head of the kernel's struct bpf_iter__tcp and struct bpf_iter__udp. */
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

int bpf_iter__tcp(struct socket_walk *walk)
{
	return list_socket(walk);
}

int bpf_iter__udp(struct socket_walk *walk)
{
	return list_socket(walk);
}

#endif
