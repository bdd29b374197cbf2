/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The answer to a rejected packet: a TCP RST or an ICMP port unreachable, made of the packet itself and sent back to
 * the pod. There is no rate limit, so that every connect() is refused at once.
 */
#define ANSWER_TTL 64
#define QUOTED_BYTES_MAX 128	/* of the rejected packet: its IP header and the start of the next; a multiple of 4 */
#define QUOTED_TRANSPORT_BYTES 8
#define QUOTED_SCTP_BYTES 12	/* the kernel never cuts a packet within a checksum that is still to be computed */

#if IP_FAMILY == 4
#define UNREACHABLE_TYPE ICMP_DEST_UNREACH
#define UNREACHABLE_CODE ICMP_PORT_UNREACH
typedef struct iphdr network_header;
#else
#define UNREACHABLE_TYPE 1 /* RFC 4443, 3.1 */
#define UNREACHABLE_CODE 4
typedef struct ipv6hdr network_header;
#endif

static __always_inline __sum16 fold(__s64 sum)
{
	__u32 folded = (sum & 0xffff) + ((sum >> 16) & 0xffff);

	folded = (folded & 0xffff) + (folded >> 16);
	return ~((folded & 0xffff) + (folded >> 16));
}

/* The sum over the pseudo header of a packet with the addresses of `tuple`, not folded. */
static __always_inline __s64 pseudo_sum(const struct tuple *tuple, __u8 protocol, __u32 bytes)
{
	__be32 rest[2] = { htonl(bytes), htonl(protocol) };
	__s64 sum = bpf_csum_diff(NULL, 0, (__be32 *)&tuple->source, 2 * ADDRESS_BYTES, 0);

	return bpf_csum_diff(NULL, 0, rest, sizeof(rest), sum);
}

/* The IP header of an answer that carries `payload_bytes` of `protocol`. */
static __always_inline long write_network_header(struct __sk_buff *skb, const struct tuple *tuple, __u8 protocol,
						 __u16 payload_bytes)
{
#if IP_FAMILY == 4
	network_header ip = {
		.version = 4,
		.ihl = 5,
		.tot_len = htons(sizeof(ip) + payload_bytes),
		.frag_off = htons(0x4000), /* don't fragment */
		.ttl = ANSWER_TTL,
		.protocol = protocol,
		.saddr = tuple->source.words[0],
		.daddr = tuple->destination.words[0],
	};
	ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
#else
	network_header ip = {
		.version = 6,
		.payload_len = htons(payload_bytes),
		.nexthdr = protocol,
		.hop_limit = ANSWER_TTL,
	};
	__builtin_memcpy(&ip.saddr, &tuple->source, 2 * ADDRESS_BYTES);
#endif
	return bpf_skb_store_bytes(skb, NETWORK_OFFSET, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
}

/* RFC 9293, 3.10.7.1: the answer to a segment for a connection that does not exist. */
static __always_inline struct tcphdr reset_for(const struct packet *packet, const struct tcphdr *tcp)
{
	__u32 payload_bytes = packet->end_offset - packet->transport_offset - tcp->doff * TCP_DATA_OFFSET_UNIT;
	struct tcphdr reset = {
		.source = tcp->dest,
		.dest = tcp->source,
		.doff = sizeof(reset) / TCP_DATA_OFFSET_UNIT,
		.rst = 1,
	};

	if (tcp->ack) {
		reset.seq = tcp->ack_seq;
	} else {
		reset.ack = 1;
		reset.ack_seq = htonl(ntohl(tcp->seq) + payload_bytes + tcp->syn + tcp->fin);
	}
	return reset;
}

static __always_inline int answer_reset(const struct packet *packet)
{
	struct __sk_buff *skb = packet->skb;
	struct tuple answer = reversed(&packet->tuple, TO_POD);
	__s32 extra_bytes = packet->transport_offset - NETWORK_OFFSET - NETWORK_HEADER_BYTES;
	__u32 transport_offset = NETWORK_OFFSET + NETWORK_HEADER_BYTES;
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(skb, packet->transport_offset, &tcp, sizeof(tcp)) || tcp.rst)
		return TC_ACT_SHOT;
	struct tcphdr reset = reset_for(packet, &tcp);
	bool partial = has_partial_checksum(skb, packet->transport_offset + offsetof(struct tcphdr, check));

	if (bpf_skb_change_tail(skb, packet->transport_offset + sizeof(reset), 0))
		return TC_ACT_SHOT;
	/* The answer has no IP options and no extension headers. */
	if (extra_bytes > 0 && bpf_skb_adjust_room(skb, -extra_bytes, BPF_ADJ_ROOM_NET, 0))
		return TC_ACT_SHOT;
	__s64 sum = pseudo_sum(&answer, IPPROTO_TCP, sizeof(reset));
	reset.check = partial ? ~fold(sum) : fold(bpf_csum_diff(NULL, 0, (__be32 *)&reset, sizeof(reset), sum));
	if (bpf_skb_store_bytes(skb, transport_offset, &reset, sizeof(reset), BPF_F_RECOMPUTE_CSUM) ||
	    write_network_header(skb, &answer, IPPROTO_TCP, sizeof(reset)))
		return TC_ACT_SHOT;
	return send_back(packet);
}

/* RFC 792 and RFC 4443, 3.1: destination unreachable, port unreachable. */
static __always_inline int answer_unreachable(const struct packet *packet)
{
	struct __sk_buff *skb = packet->skb;
	struct tuple answer = reversed(&packet->tuple, TO_POD);
	__u64 quoted_bytes = packet->transport_offset - NETWORK_OFFSET +
			     (packet->protocol == IPPROTO_SCTP ? QUOTED_SCTP_BYTES : QUOTED_TRANSPORT_BYTES);
	struct {
		__u8 type, code;
		__sum16 check;
		__be32 unused;
		__u8 quoted[QUOTED_BYTES_MAX];
	} icmp = { .type = UNREACHABLE_TYPE, .code = UNREACHABLE_CODE };
	const __u32 icmp_header_bytes = sizeof(icmp) - sizeof(icmp.quoted);

	if (quoted_bytes < NETWORK_HEADER_BYTES)
		return TC_ACT_SHOT;
	/*
	 * For verifiers up to 6.1: 64 bits, and two comparisons of this very register instead of one of a difference.
	 */
	asm volatile("" : "+r"(quoted_bytes));
	if (quoted_bytes > sizeof(icmp.quoted))
		return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(skb, NETWORK_OFFSET, icmp.quoted, quoted_bytes) ||
	    bpf_skb_change_tail(skb, NETWORK_OFFSET + quoted_bytes, 0) ||
	    bpf_skb_adjust_room(skb, NETWORK_HEADER_BYTES + icmp_header_bytes, BPF_ADJ_ROOM_MAC, 0))
		return TC_ACT_SHOT;
	__s64 sum = 0;
	if (IP_FAMILY == 6)
		sum = pseudo_sum(&answer, IPPROTO_ICMP_FAMILY, icmp_header_bytes + quoted_bytes);
	icmp.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&icmp, sizeof(icmp), sum));
	if (bpf_skb_store_bytes(skb, NETWORK_OFFSET + NETWORK_HEADER_BYTES, &icmp, icmp_header_bytes,
				BPF_F_RECOMPUTE_CSUM) ||
	    write_network_header(skb, &answer, IPPROTO_ICMP_FAMILY, icmp_header_bytes + quoted_bytes))
		return TC_ACT_SHOT;
	return send_back(packet);
}
