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
