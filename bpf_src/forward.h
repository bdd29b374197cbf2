/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Where a packet goes after its verdict.
 *
 * TC_ACT_UNSPEC is also TCX_NEXT (-1): the programs and filters of others behind ours still run, and then the host's stack.
 */
#define NEXT TC_ACT_UNSPEC

enum tail_program {
	PROGRAM_REJECT = 0,
	PROGRAM_ICMP_ERROR = 1,
	PROGRAM_SCTP_CHECKSUM = 2,
	PROGRAM_COUNT = 3,
};

/* skb->cb survives a tail call: the arguments of the program that is called. */
enum tail_argument {
	ARGUMENT_DIRECTION = 0,
	ARGUMENT_PORTS_DIFFERENCE = 0,
	ARGUMENT_SEND_BACK = 1,
};

/* Back to the pod that sent it: out of the host's end of its link, the link-layer addresses exchanged. */
static __always_inline int send_back(struct __sk_buff *skb)
{
	struct ethhdr link;
	__u8 address[ETH_ALEN];

	if (bpf_skb_load_bytes(skb, 0, &link, sizeof(link)))
		return TC_ACT_SHOT;
	__builtin_memcpy(address, link.h_dest, ETH_ALEN);
	__builtin_memcpy(link.h_dest, link.h_source, ETH_ALEN);
	__builtin_memcpy(link.h_source, address, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, &link, sizeof(link), 0))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline bool is_dropped(enum verdict verdict)
{
	return verdict >= VERDICT_DROPPED_FLOW_TABLE_FULL && verdict <= VERDICT_DROPPED_INTERNAL;
}

static __always_inline bool is_answered(enum verdict verdict)
{
	return verdict == VERDICT_REJECTED_NO_BACKEND || verdict == VERDICT_REJECTED_UNDEFINED_PORT ||
	       verdict == VERDICT_RESET_BACKEND_GONE;
}
