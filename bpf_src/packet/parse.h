/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A packet, parsed once: where its headers are and which tuple it belongs to.
 *
 * Headers may lie outside the packet's linear part. bpf_skb_load_bytes copes with that, and fails where a packet is
 * shorter than its headers say.
 */
#define LINK_HEADER_BYTES sizeof(struct ethhdr)
#define NETWORK_OFFSET LINK_HEADER_BYTES
#define TCP_DATA_OFFSET_UNIT 4

enum packet_kind {
	PACKET_OTHER,		/* neither TCP, UDP, SCTP nor an ICMP error */
	PACKET_TRANSPORT,	/* has a tuple */
	PACKET_ICMP_ERROR,
	PACKET_FRAGMENT,
	PACKET_MALFORMED,
};

enum tcp_flags {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

/* Types of an SCTP packet's first chunk (RFC 9260, 3.2) that begin or end an association. */
enum sctp_chunk {
	SCTP_INIT = 1,
	SCTP_ABORT = 6,
	SCTP_SHUTDOWN_COMPLETE = 14,
};

struct packet {
	struct __sk_buff *skb;
	enum packet_kind kind;
	__u32 transport_offset;	/* from the start of the frame */
	__u32 end_offset;	/* of the IP packet: a frame may be padded behind it */
	__u32 ifindex;		/* of the pod's link that the packet comes from or goes to */
	struct pod_link *link;	/* the element of that link; NULL: the link has none */
	__u8 protocol;
	__u8 hop_limit;
	__u8 tcp_flags;		/* SCTP: the flag that means the same, SYN for INIT, RST for ABORT; UDP: 0 */
	bool translated;
	bool is_at_uplink;	/* met by from_uplink, not at a pod's link */
	struct tuple tuple;
	struct tuple to;	/* the tuple after translation, if `translated` */
};

#define DIRECT_OFFSET_MAX 0x1fff

/* Copy bytes of the packet: directly from its linear part, where headers almost always are, else by the helper. */
static __always_inline long load_bytes(struct __sk_buff *skb, __u32 offset, void *to, __u32 bytes)
{
	void *start = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (offset <= DIRECT_OFFSET_MAX && start + offset + bytes <= end) {
		__builtin_memcpy(to, start + offset, bytes);
		return 0;
	}
	return bpf_skb_load_bytes(skb, offset, to, bytes);
}

/* The first 16 bytes of a transport header; a UDP header has only 8. */
struct transport_start {
	__be16 source_port_be;
	__be16 destination_port_be;
	union {
		__be32 sequence_be;
		__be16 udp_length_be;
	};
	__be32 acknowledgement_be;
	union {
		__u8 data_offset;	/* TCP: upper four bits, in words */
		__u8 sctp_chunk;
	};
	__u8 tcp_flags;
	__be16 window_be;
};

/* An IP header, parsed. */
struct network {
	enum packet_kind kind;	/* PACKET_TRANSPORT: the caller has to parse the header of `protocol` */
	__u32 transport_offset;
	__u32 end_offset;
	__u8 protocol;
	__u8 hop_limit;
	struct address addresses[2];	/* source, destination */
};

/* A length of 0 means more than 64 KiB (BIG TCP): in packets that are still to be segmented, and in quoted ones. */
static __always_inline __u32 bytes_told(struct __sk_buff *skb, __be16 length_be, __u32 present_bytes, bool inner)
{
	if (!length_be && (inner || skb->gso_size))
		return present_bytes;
	return ntohs(length_be);
}

#if IP_FAMILY == 4

#define ETHERTYPE ETH_P_IP
#define NETWORK_HEADER_BYTES sizeof(struct iphdr)
#define ADDRESSES_OFFSET offsetof(struct iphdr, saddr)
#define IPPROTO_ICMP_FAMILY IPPROTO_ICMP
#define FRAGMENT_MASK 0x3fff /* more fragments, and the offset */
#define FRAGMENT_OFFSET_MASK 0x1fff

/* Parse the IP header at `offset`. An `inner` one is quoted by an ICMP error: cut short, never reassembled. */
static __always_inline struct network parse_network(struct __sk_buff *skb, __u32 offset, bool inner)
{
	struct network network = { .kind = PACKET_MALFORMED };
	struct iphdr ip;

	if (load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return network;
	__u32 header_bytes = ip.ihl * 4;
	__u32 total_bytes = bytes_told(skb, ip.tot_len, skb->len - offset, inner);
	if (total_bytes < header_bytes || (!inner && total_bytes > skb->len - offset))
		return network;
	network.transport_offset = offset + header_bytes;
	network.end_offset = offset + total_bytes;
	network.protocol = ip.protocol;
	network.hop_limit = ip.ttl;
	bool is_fragment = ip.frag_off & htons(inner ? FRAGMENT_OFFSET_MASK : FRAGMENT_MASK);
	network.kind = is_fragment ? PACKET_FRAGMENT : PACKET_TRANSPORT;
	__builtin_memcpy(network.addresses, &ip.saddr, sizeof(network.addresses));
	return network;
}

static __always_inline bool is_icmp_error(__u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

#else

#define ETHERTYPE ETH_P_IPV6
#define NETWORK_HEADER_BYTES sizeof(struct ipv6hdr)
#define ADDRESSES_OFFSET offsetof(struct ipv6hdr, saddr)
#define IPPROTO_ICMP_FAMILY IPPROTO_ICMPV6
#define EXTENSION_HEADERS_MAX 6
#define ICMPV6_ERROR_MAX 127 /* RFC 4443, 2.1: error messages have a zero high-order bit */

struct extension_header {
	__u8 next;
	__u8 length;	/* in 8 octets, the first not counted; AH: in 4 octets less 2 */
	union {
		struct {
			__u8 type;	/* of a routing header */
			__u8 segments_left;
		};
		__be16 fragment_be;	/* of a fragment header: offset and M */
	};
};
#define FRAGMENT_MASK 0xfff9 /* the offset, and more fragments: without both it is a whole packet (RFC 8200, 4.5) */
#define FRAGMENT_OFFSET_MASK 0xfff8
#define IPV6_FRAGMENT_HEADER_BYTES 8

/* Parse the IP header at `offset`. An `inner` one is quoted by an ICMP error: cut short, never reassembled. */
static __always_inline struct network parse_network(struct __sk_buff *skb, __u32 offset, bool inner)
{
	struct network network = { .kind = PACKET_MALFORMED };
	struct ipv6hdr ip;

	if (load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 6)
		return network;
	__u32 payload_bytes = bytes_told(skb, ip.payload_len, skb->len - offset - sizeof(ip), inner);
	if (!inner && payload_bytes > skb->len - offset - sizeof(ip))
		return network;
	network.transport_offset = offset + sizeof(ip);
	network.end_offset = network.transport_offset + payload_bytes;
	network.protocol = ip.nexthdr;
	network.hop_limit = ip.hop_limit;
	__builtin_memcpy(network.addresses, &ip.saddr, sizeof(network.addresses));

#pragma unroll
	for (int i = 0; i < EXTENSION_HEADERS_MAX; i++) {
		struct extension_header header;
		__u8 protocol = network.protocol;

		if (protocol != IPPROTO_HOPOPTS && protocol != IPPROTO_ROUTING && protocol != IPPROTO_DSTOPTS &&
		    protocol != IPPROTO_AH && protocol != IPPROTO_FRAGMENT)
			break;
		if (bpf_skb_load_bytes(skb, network.transport_offset, &header, sizeof(header)))
			return network;
		/* This destination is not the final one, and the checksum covers the final one. */
		if (protocol == IPPROTO_ROUTING && header.segments_left) {
			network.kind = PACKET_OTHER;
			return network;
		}
		if (protocol == IPPROTO_FRAGMENT &&
		    header.fragment_be & htons(inner ? FRAGMENT_OFFSET_MASK : FRAGMENT_MASK)) {
			network.kind = PACKET_FRAGMENT;
			return network;
		}
		if (protocol == IPPROTO_FRAGMENT)
			network.transport_offset += IPV6_FRAGMENT_HEADER_BYTES;
		else if (protocol == IPPROTO_AH)
			network.transport_offset += (header.length + 2) * 4;
		else
			network.transport_offset += (header.length + 1) * 8;
		network.protocol = header.next;
	}
	if (inner || network.transport_offset <= network.end_offset)
		network.kind = PACKET_TRANSPORT;
	return network;
}

static __always_inline bool is_icmp_error(__u8 type)
{
	return type <= ICMPV6_ERROR_MAX;
}

#endif

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

static __always_inline __u8 flags_of_chunk(__u8 chunk)
{
	switch (chunk) {
	case SCTP_INIT:
		return TCP_SYN;
	case SCTP_ABORT:
	case SCTP_SHUTDOWN_COMPLETE:
		return TCP_RST;
	default:
		return TCP_ACK;
	}
}

/* False if lengths lie: the transport header does not fit between its start and the packet's end. */
static __always_inline bool transport_fits(const struct packet *packet, const struct transport_start *start)
{
	__u32 available = packet->end_offset - packet->transport_offset;

	if (packet->protocol == IPPROTO_TCP) {
		__u32 header_bytes = (start->data_offset >> 4) * TCP_DATA_OFFSET_UNIT;
		return header_bytes >= sizeof(struct tcphdr) && header_bytes <= available;
	}
	if (packet->protocol == IPPROTO_SCTP)
		return available >= sizeof(*start);
	__u32 udp_bytes = ntohs(start->udp_length_be) ?: available; /* 0: longer than 64 KiB (RFC 2675) */
	return udp_bytes >= sizeof(struct udphdr) && udp_bytes <= available;
}

static __always_inline enum packet_kind parse_transport(struct packet *packet)
{
	struct __sk_buff *skb = packet->skb;
	struct transport_start start = {};

	if (packet->protocol == IPPROTO_ICMP_FAMILY) {
		__u8 type;
		if (bpf_skb_load_bytes(skb, packet->transport_offset, &type, sizeof(type)))
			return PACKET_MALFORMED;
		return is_icmp_error(type) ? PACKET_ICMP_ERROR : PACKET_OTHER;
	}
	if (!has_ports(packet->protocol))
		return PACKET_OTHER;
	if (packet->protocol == IPPROTO_UDP ? load_bytes(skb, packet->transport_offset, &start, sizeof(struct udphdr))
					    : load_bytes(skb, packet->transport_offset, &start, sizeof(start)))
		return PACKET_MALFORMED;
	if (packet->protocol == IPPROTO_TCP)
		packet->tcp_flags = start.tcp_flags;
	else if (packet->protocol == IPPROTO_SCTP)
		packet->tcp_flags = flags_of_chunk(start.sctp_chunk);
	if (!transport_fits(packet, &start))
		return PACKET_MALFORMED;
	packet->tuple.source_port_be = start.source_port_be;
	packet->tuple.destination_port_be = start.destination_port_be;
	return PACKET_TRANSPORT;
}

/* Parse all that the path needs of a packet. */
static __always_inline struct packet parse_packet(struct __sk_buff *skb, enum direction direction)
{
	struct network network = parse_network(skb, NETWORK_OFFSET, false);
	struct packet packet = {
		.skb = skb,
		.kind = network.kind,
		.transport_offset = network.transport_offset,
		.end_offset = network.end_offset,
		.ifindex = skb->ifindex,
		.protocol = network.protocol,
		.hop_limit = network.hop_limit,
		.tuple = {
			.source = network.addresses[0],
			.destination = network.addresses[1],
			.protocol = network.protocol,
			.direction = direction,
		},
	};

	if (packet.kind == PACKET_TRANSPORT)
		packet.kind = parse_transport(&packet);
	return packet;
}

/* The tuple of the opposite direction, to be looked up at the hook `direction`. */
static __always_inline struct tuple reversed(const struct tuple *tuple, __u8 direction)
{
	struct tuple opposite = {
		.source = tuple->destination,
		.destination = tuple->source,
		.source_port_be = tuple->destination_port_be,
		.destination_port_be = tuple->source_port_be,
		.protocol = tuple->protocol,
		.direction = direction,
	};

	return opposite;
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	__be32 difference = 0;

#pragma unroll
	for (int i = 0; i < ADDRESS_WORDS; i++)
		difference |= a->words[i] ^ b->words[i];
	return !difference;
}

/* True if the packet begins a connection: SYN without ACK, INIT. */
static __always_inline bool is_syn(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}
