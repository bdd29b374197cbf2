/* SPDX-License-Identifier: GPL-2.0 */
/*
 * ICMP errors about a translated flow. The pod must find its own connection in the quoted packet, so these are
 * rewritten, as nf_nat does it (nf_nat_icmp_reply_translation): addresses and ports of the quoted packet, its IP
 * checksum, and the outer addresses.
 *
 * The quoted packet ran in the direction opposite to the error's. Reversed, its tuple is the tuple of a packet in the
 * error's own direction, and finds the flow. The quoted transport checksum stays: it is often cut off, and nobody
 * verifies it.
 */
#define ICMP_HEADER_BYTES 8
#define ICMP_CHECKSUM_OFFSET 2

/* Parse the quoted packet. Its `kind` is PACKET_TRANSPORT if it has a tuple. */
static __always_inline struct packet parse_quoted(const struct packet *outer)
{
	__u32 offset = outer->transport_offset + ICMP_HEADER_BYTES;
	struct network network = parse_network(outer->skb, offset, true);
	struct packet quoted = {
		.skb = outer->skb,
		.kind = PACKET_OTHER,
		.transport_offset = network.transport_offset,
		.protocol = network.protocol,
		.tuple = {
			.source = network.addresses[0],
			.destination = network.addresses[1],
			.protocol = network.protocol,
		},
	};
	struct ports ports;

	if (network.kind != PACKET_TRANSPORT || !has_ports(network.protocol) ||
	    network.transport_offset + sizeof(ports) > outer->end_offset ||
	    bpf_skb_load_bytes(outer->skb, network.transport_offset, &ports, sizeof(ports)))
		return quoted;
	quoted.kind = PACKET_TRANSPORT;
	quoted.tuple.source_port_be = ports.source_be;
	quoted.tuple.destination_port_be = ports.destination_be;
	return quoted;
}

static __always_inline bool translate_quoted(const struct packet *outer, const struct packet *quoted,
					     const struct tuple *to)
{
	struct __sk_buff *skb = outer->skb;
	__u32 checksum = outer->transport_offset + ICMP_CHECKSUM_OFFSET;
	__s64 difference = address_difference(&quoted->tuple, to);
	long error = bpf_l4_csum_replace(skb, checksum, ports_word(&quoted->tuple), ports_word(to), sizeof(__be32));

	/*
	 * In IPv4 the quoted header's checksum changes by the opposite of its addresses: together they change nothing.
	 */
	if (IP_FAMILY == 6)
		error = error ?: bpf_l4_csum_replace(skb, checksum, 0, difference, 0);
	error = error ?: write_ports(skb, quoted->transport_offset, to);
	error = error ?: adjust_network_checksum(skb, outer->transport_offset + ICMP_HEADER_BYTES, difference);
	return !(error ?: write_addresses(skb, outer->transport_offset + ICMP_HEADER_BYTES, to));
}

static __always_inline bool translate_outer(const struct packet *outer, const struct tuple *to)
{
	__s64 difference = address_difference(&outer->tuple, to);
	long error = 0;

	if (IP_FAMILY == 6)
		error = adjust_pseudo_header(outer->skb, outer->transport_offset + ICMP_CHECKSUM_OFFSET, difference, 0);
	error = error ?: adjust_network_checksum(outer->skb, NETWORK_OFFSET, difference);
	return !(error ?: write_addresses(outer->skb, NETWORK_OFFSET, to));
}

static __always_inline enum verdict translate_icmp_error(struct packet *outer)
{
	struct packet quoted = parse_quoted(outer);

	/* An error goes to the sender of the quoted packet. Any other error is forged, or not ours to redirect. */
	if (quoted.kind != PACKET_TRANSPORT || !same_address(&outer->tuple.destination, &quoted.tuple.source)) {
		outer->kind = PACKET_OTHER;
		return VERDICT_UNTOUCHED;
	}
	struct tuple key = reversed(&quoted.tuple, outer->tuple.direction);
	outer->tuple.source_port_be = key.source_port_be;
	outer->tuple.destination_port_be = key.destination_port_be;
	outer->tuple.protocol = key.protocol;
	struct flow *flow = flows.lookup(&key);
	if (!flow || is_expired(flow, now_seconds())) {
		hand_to_predecessor(outer);
		return VERDICT_UNTOUCHED;
	}
	outer->to = flow->to;
	outer->translated = true;
	struct tuple quoted_to = reversed(&outer->to, 0);
	if (!translate_quoted(outer, &quoted, &quoted_to) || !translate_outer(outer, &outer->to))
		return VERDICT_DROPPED_INTERNAL;
	return VERDICT_ICMP_ERROR_TRANSLATED;
}
