/* SPDX-License-Identifier: GPL-2.0 */
/* The call of an application on its socket (struct bpf_sock_addr): who calls, and the address that it gives or gets. */
#define PERMIT 1
#define REFUSE 0

enum address_form {
	PLAIN,
	MAPPED,		/* ::ffff:a.b.c.d */
};

/* True for an IPv4-mapped IPv6 address. */
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

static __always_inline void set_address(struct bpf_sock_addr *call, enum address_form form,
					const struct address *address)
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

static __always_inline void set_address(struct bpf_sock_addr *call, enum address_form form,
					const struct address *address)
{
	call->user_ip6[0] = address->words[0];
	call->user_ip6[1] = address->words[1];
	call->user_ip6[2] = address->words[2];
	call->user_ip6[3] = address->words[3];
}

#endif

/* The tuple that the socket will have. The kernel has yet to choose the source's address, and most often its port. */
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

/* True for a pod's socket. Sockets in the host's own network namespace are left to kube-proxy. */
static __always_inline bool is_pods(struct bpf_sock_addr *call)
{
	struct settings *live = live_settings();

	return live && bpf_get_netns_cookie(call) != live->host_netns_cookie;
}

/* True for a subflow of MPTCP: the connection's own socket would show the backend to the application. */
static __always_inline bool is_mptcp(struct bpf_sock *socket)
{
#if MPTCP_IS_TOLD
	return bpf_skc_to_mptcp_sock(socket);
#else
	return false;
#endif
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
