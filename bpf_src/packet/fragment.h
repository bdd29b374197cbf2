/* SPDX-License-Identifier: GPL-2.0 */
/* What can be read of a fragment. */

/*
 * Complete the tuple of a first fragment, which has the ports. Returns true if it is UDP's; false for all fragments
 * that follow the first one, and for a packet that is too short.
 */
static __always_inline bool read_fragment(const struct packet *packet, struct tuple *tuple)
{
	__u32 offset = packet->transport_offset;
	struct ports ports;
#if IP_FAMILY == 4
	__be16 fragment_be;

	const __u32 fragment_offset = NETWORK_OFFSET + offsetof(struct iphdr, frag_off);
	if (load_bytes(packet->skb, fragment_offset, &fragment_be, sizeof(fragment_be)))
		return false;
#else
	struct extension_header header;

	if (load_bytes(packet->skb, offset, &header, sizeof(header)))
		return false;
	__be16 fragment_be = header.fragment_be;
	tuple->protocol = header.next;
	offset += IPV6_FRAGMENT_HEADER_BYTES;
#endif
	if (fragment_be & htons(FRAGMENT_OFFSET_MASK) || load_bytes(packet->skb, offset, &ports, sizeof(ports)))
		return false;
	tuple->source_port_be = ports.source_be;
	tuple->destination_port_be = ports.destination_be;
	return tuple->protocol == IPPROTO_UDP;
}

/* The header of a fragment. */
struct fragment_header {
	__u32 offset_bytes;	/* of its data in the datagram; 0: the first fragment */
	__u32 id;		/* as it is sent */
	bool more;		/* it is not the last one */
};

/*
 * Read the header of a fragment, and let `packet` go on to the data behind it. Returns false if the packet is too short.
 * The protocol of a fragment that follows the first one is what its sender says: only the first one's counts.
 */
static __always_inline bool read_fragment_header(struct packet *packet, struct fragment_header *header)
{
#if IP_FAMILY == 4
	struct {
		__be16 id;
		__be16 fragment_be;
	} fields;

	if (load_bytes(packet->skb, NETWORK_OFFSET + offsetof(struct iphdr, id), &fields, sizeof(fields)))
		return false;
	header->offset_bytes = (ntohs(fields.fragment_be) & FRAGMENT_OFFSET_MASK) * 8;
	header->more = fields.fragment_be & htons(FRAGMENT_MASK & ~FRAGMENT_OFFSET_MASK);
#else
	struct {
		__u8 next;
		__u8 reserved;
		__be16 fragment_be;
		__be32 id;
	} fields;

	if (load_bytes(packet->skb, packet->transport_offset, &fields, sizeof(fields)))
		return false;
	header->offset_bytes = ntohs(fields.fragment_be) & FRAGMENT_OFFSET_MASK;
	header->more = fields.fragment_be & htons(FRAGMENT_MASK & ~FRAGMENT_OFFSET_MASK);
	packet->transport_offset += IPV6_FRAGMENT_HEADER_BYTES;
	packet->protocol = fields.next;
	packet->tuple.protocol = fields.next;
#endif
	header->id = fields.id;
	return packet->transport_offset <= packet->end_offset;
}

/* IPv6: destination options may stand between the fragment header and the transport header. */
static __always_inline void skip_options(struct packet *packet)
{
#if IP_FAMILY == 6
	struct extension_header options;

	if (packet->protocol != IPPROTO_DSTOPTS ||
	    load_bytes(packet->skb, packet->transport_offset, &options, sizeof(options)))
		return;
	packet->transport_offset += (options.length + 1) * 8;
	packet->protocol = options.next;
	packet->tuple.protocol = options.next;
#endif
}

/*
 * Read the transport header of a first fragment into `packet`. Returns false if the fragment is too small for it: then
 * flags could stand in another fragment (RFC 1858, RFC 7112). Of a protocol without ports nothing is read.
 */
static __always_inline bool read_first_fragment(struct packet *packet)
{
	struct transport_start start = {};

	skip_options(packet);
	if (!has_ports(packet->protocol))
		return true;
	__u32 needed = packet->protocol == IPPROTO_UDP	 ? sizeof(struct udphdr)
		       : packet->protocol == IPPROTO_TCP ? sizeof(struct tcphdr)
							 : sizeof(start);
	bool fits = packet->transport_offset + needed <= packet->end_offset;
	if (fits && packet->protocol != IPPROTO_UDP)
		fits = !load_bytes(packet->skb, packet->transport_offset, &start, sizeof(start));
	else
		fits &= !load_bytes(packet->skb, packet->transport_offset, &start, sizeof(struct udphdr));
	packet->kind = PACKET_TRANSPORT;
	if (packet->protocol == IPPROTO_TCP)
		packet->tcp_flags = start.tcp_flags;
	else if (packet->protocol == IPPROTO_SCTP)
		packet->tcp_flags = flags_of_chunk(start.sctp_chunk);
	packet->tuple.source_port_be = start.source_port_be;
	packet->tuple.destination_port_be = start.destination_port_be;
	return fits;
}

/* Let a first fragment go on to its transport header, as a packet that is no fragment does when it is parsed. */
static __always_inline void go_on_to_transport(struct packet *packet)
{
	struct fragment_header header;

	if (packet->kind == PACKET_FRAGMENT && read_fragment_header(packet, &header))
		skip_options(packet);
}

#define SCTP_CHUNKS_MAX 4

/*
 * Where an SCTP packet ends of which `packet` is the first fragment. Only a chunk that is too large for one fragment
 * makes SCTP let IP cut the packet, and nothing is bundled behind it: that chunk's end is the packet's. Returns the
 * fragment's own end where no chunk is cut.
 */
static __always_inline __u32 sctp_end(const struct packet *packet)
{
	__u32 offset = packet->transport_offset + SCTP_HEADER_BYTES;

#pragma unroll
	for (int i = 0; i < SCTP_CHUNKS_MAX; i++) {
		struct {
			__u8 type;
			__u8 flags;
			__be16 length_be;
		} chunk;

		if (load_bytes(packet->skb, offset, &chunk, sizeof(chunk)))
			break;
		offset += (ntohs(chunk.length_be) + 3) & ~3u;
		if (offset > packet->end_offset)
			return offset;
	}
	return packet->end_offset;
}
