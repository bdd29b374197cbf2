/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a verdict does to its packet.
 *
 * TC_ACT_UNSPEC is also TCX_NEXT (-1): the programs and filters of others behind ours still run, and then the host's
 * stack.
 */
#define NEXT TC_ACT_UNSPEC

/* Send the packet back to its sender: out of the host's end of the pod's link, the link-layer addresses exchanged. */
static __always_inline int send_back(const struct packet *packet)
{
	struct __sk_buff *skb = packet->skb;
	struct ethhdr link;
	__u8 address[ETH_ALEN];

	if (bpf_skb_load_bytes(skb, 0, &link, sizeof(link)))
		return TC_ACT_SHOT;
	__builtin_memcpy(address, link.h_dest, ETH_ALEN);
	__builtin_memcpy(link.h_dest, link.h_source, ETH_ALEN);
	__builtin_memcpy(link.h_source, address, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, &link, sizeof(link), 0))
		return TC_ACT_SHOT;
	return bpf_redirect(packet->ifindex, 0);
}

static __always_inline bool is_dropped(enum verdict verdict)
{
	return (verdict >= VERDICT_DROPPED_FLOW_TABLE_FULL && verdict <= VERDICT_DROPPED_INTERNAL) ||
	       verdict == VERDICT_DROPPED_FRAGMENT || verdict == VERDICT_DROPPED_WITH_FIRST;
}

static __always_inline bool is_answered(enum verdict verdict)
{
	return verdict == VERDICT_REJECTED_NO_BACKEND || verdict == VERDICT_REJECTED_UNDEFINED_PORT ||
	       verdict == VERDICT_RESET_BACKEND_GONE;
}

/* True if the packet is of the family that this program is for, in a frame without a VLAN tag. */
static __always_inline bool is_ours(const struct __sk_buff *skb)
{
	return skb->protocol == htons(ETHERTYPE) && !skb->vlan_present;
}

/* True if the pod reaches itself: the packet can only go back to the link where it came from. */
static __always_inline bool is_hairpin(const struct packet *packet)
{
	return packet->translated && packet->tuple.direction == FROM_POD && packet->to.direction == FROM_POD;
}

/* Count the verdict and do what it says. Returns NEXT if the packet goes on. */
static __always_inline int finish(const struct packet *packet, enum verdict verdict)
{
	observe(packet, verdict);
	if (is_dropped(verdict))
		return TC_ACT_SHOT;
	if (is_answered(verdict)) {
		programs.call(packet->skb, PROGRAM_REJECT);
		return TC_ACT_SHOT;
	}
	if (packet->translated && packet->protocol == IPPROTO_SCTP) {
		packet->skb->cb[ARGUMENT_PORTS_DIFFERENCE] = ports_word(&packet->tuple) ^ ports_word(&packet->to);
		packet->skb->cb[ARGUMENT_SEND_BACK] = is_hairpin(packet);
		programs.call(packet->skb, PROGRAM_SCTP_CHECKSUM);
		return TC_ACT_SHOT;
	}
	return is_hairpin(packet) ? send_back(packet) : NEXT;
}
