/* SPDX-License-Identifier: GPL-2.0 */
/*
 * DNAT and its reverse are one thing: a packet gets the addresses and ports of another tuple.
 *
 * Checksums are adjusted by the difference (RFC 1624). Under CHECKSUM_PARTIAL the field covers the pseudo header only,
 * and BPF_F_PSEUDO_HDR says which differences belong to that; whoever completes the checksum will add the ports. No
 * length changes, so GSO packets keep their sizes.
 *
 * Under CHECKSUM_COMPLETE the kernel keeps the sum over the packet (skb->csum), as the network card has told it, and
 * that must stay the packet's. Where a header's checksum changes by the opposite of what it covers, the sum stays: ports
 * and their checksum, IPv4 addresses and the IP header's. What is left is BPF_F_PSEUDO_HDR's: the helper subtracts the
 * difference of the addresses for the transport's checksum. For IPv6 that is wrong, as no header's checksum opposes the
 * addresses, so the difference is added again. The flag that spares both, BPF_F_IPV6, older kernels refuse.
 */

/* BCC declares this helper with a sum of 16 bits. It refuses where the kernel keeps no sum, which is as good. */
static long (*csum_update)(struct __sk_buff *skb, __u32 difference) = (void *)BPF_FUNC_csum_update;

struct ports {
	__be16 source_be;
	__be16 destination_be;
};

static __always_inline struct ports ports_of(const struct tuple *tuple)
{
	struct ports ports = { tuple->source_port_be, tuple->destination_port_be };

	return ports;
}

static __always_inline __u32 ports_word(const struct tuple *tuple)
{
	return tuple->source_port_be | (__u32)tuple->destination_port_be << 16;
}

/*
 * True if the checksum is still to be completed when the packet is sent (CHECKSUM_PARTIAL). No helper says so. But
 * bpf_l4_csum_replace leaves the field of such a packet alone when content changes, and changes the field of any other
 * packet, which gets its value back.
 */
static __always_inline bool has_partial_checksum(struct __sk_buff *skb, __u32 offset)
{
	__sum16 before = 0, after = 0;

	bpf_skb_load_bytes(skb, offset, &before, sizeof(before));
	bpf_l4_csum_replace(skb, offset, 0, 1, sizeof(__be16));
	bpf_skb_load_bytes(skb, offset, &after, sizeof(after));
	bpf_l4_csum_replace(skb, offset, 1, 0, sizeof(__be16));
	return before == after;
}

/* Offset of the checksum within a TCP or UDP header. */
static __always_inline __u32 checksum_offset(__u8 protocol)
{
	return protocol == IPPROTO_TCP ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check);
}

static __always_inline __u32 fold_to_word(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

/* The change of the one's complement sum over the addresses: what bpf_csum_diff computes, but without a call. */
static __always_inline __s64 address_difference(const struct tuple *from, const struct tuple *to)
{
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < ADDRESS_WORDS; i++) {
		sum += (__u64)(__u32)~from->source.words[i] + to->source.words[i];
		sum += (__u64)(__u32)~from->destination.words[i] + to->destination.words[i];
	}
	return fold_to_word(sum);
}

/* Adjust a checksum that covers the pseudo header to addresses that change by `difference`. */
static __always_inline long adjust_pseudo_header(struct __sk_buff *skb, __u32 checksum, __s64 difference, __u64 flags)
{
	long error = bpf_l4_csum_replace(skb, checksum, 0, difference, BPF_F_PSEUDO_HDR | flags);

	if (IP_FAMILY == 6)
		csum_update(skb, difference);
	return error;
}

/* An IPv6 header has no checksum. */
static __always_inline long adjust_network_checksum(struct __sk_buff *skb, __u32 offset, __s64 difference)
{
#if IP_FAMILY == 4
	return bpf_l3_csum_replace(skb, offset + offsetof(struct iphdr, check), 0, difference, 0);
#else
	return 0;
#endif
}

/* Write the addresses of `to` into the IP header at `offset`. */
static __always_inline long write_addresses(struct __sk_buff *skb, __u32 offset, const struct tuple *to)
{
	return bpf_skb_store_bytes(skb, offset + ADDRESSES_OFFSET, (void *)&to->source, 2 * ADDRESS_BYTES, 0);
}

static __always_inline long write_ports(struct __sk_buff *skb, __u32 offset, const struct tuple *to)
{
	struct ports ports = ports_of(to);

	return bpf_skb_store_bytes(skb, offset, &ports, sizeof(ports), 0);
}

static __always_inline long adjust_checksum(const struct packet *packet, const struct tuple *to, __s64 difference)
{
	__u64 zero_is_none = packet->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 checksum = packet->transport_offset + checksum_offset(packet->protocol);
	__u32 from_ports = ports_word(&packet->tuple), to_ports = ports_word(to);
	long error = adjust_pseudo_header(packet->skb, checksum, difference, zero_is_none);

	if (from_ports != to_ports)
		error = error ?: bpf_l4_csum_replace(packet->skb, checksum, from_ports, to_ports,
						     zero_is_none | sizeof(__be32));
	return error;
}

/* SCTP's checksum opposes neither the ports nor IPv6 addresses in the kernel's sum. */
static __always_inline void keep_sum(const struct packet *packet, const struct tuple *to, __s64 difference)
{
	__u64 sum = (__u64)(__u32)~ports_word(&packet->tuple) + ports_word(to);

	csum_update(packet->skb, fold_to_word(IP_FAMILY == 6 ? sum + difference : sum));
}

static __always_inline long write_tuple(const struct packet *packet, const struct tuple *to)
{
	/* Without options the ports follow the addresses, in the packet as in struct tuple: one write does both. */
	if (packet->transport_offset == NETWORK_OFFSET + NETWORK_HEADER_BYTES)
		return bpf_skb_store_bytes(packet->skb, NETWORK_OFFSET + ADDRESSES_OFFSET, (void *)&to->source,
					   2 * ADDRESS_BYTES + sizeof(struct ports), 0);
	return write_addresses(packet->skb, NETWORK_OFFSET, to) ?:
	       write_ports(packet->skb, packet->transport_offset, to);
}

/*
 * Give the packet the tuple `new_tuple`. Returns false if the kernel refused: the packet may be half written and must
 * be dropped. The checksum of SCTP is not touched here: see sctp.h.
 */
static __always_inline bool translate(struct packet *packet, const struct tuple *new_tuple)
{
	/* One copy for all that follows, because the LRU may recycle the entry of `new_tuple` meanwhile. */
	const struct tuple *to = &packet->to;
	packet->to = *new_tuple;
	packet->translated = true;

	__s64 difference = address_difference(&packet->tuple, to);
	long error = 0;

	if (packet->protocol == IPPROTO_SCTP)
		keep_sum(packet, to, difference);
	else
		error = adjust_checksum(packet, to, difference);
	error = error ?: adjust_network_checksum(packet->skb, NETWORK_OFFSET, difference);
	return !(error ?: write_tuple(packet, to));
}
