/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The path of a fragment. The first one has the ports and gets a verdict like any packet; the datagram's other fragments
 * get the same. They have no ports: only their addresses are translated.
 *
 * Nobody but the receiver puts a datagram together, so what is seen of it must not contradict the verdict: a second
 * first fragment with other ports, or a fragment that overlaps the first one, ends the datagram (RFC 5722, RFC 3128).
 */
#define DATAGRAM_BYTES_MAX 65535

/* The verdict of the fragments that follow a first one with `verdict`. */
static __always_inline enum verdict verdict_of_rest(enum verdict verdict)
{
	if (is_dropped(verdict) || is_answered(verdict))
		return VERDICT_DROPPED_WITH_FIRST;
	return verdict == VERDICT_BALANCED ? VERDICT_TRANSLATED : verdict;
}

/* True if the first fragment, with the ports of `tuple`, contradicts what was seen of its datagram. */
static __always_inline bool contradicts(const struct fragment *known, const struct tuple *tuple)
{
	return known->verdict == VERDICT_DROPPED_FRAGMENT ||
	       (!(known->flags & FRAGMENT_ENDED) && (known->first.source_port_be != tuple->source_port_be ||
						     known->first.destination_port_be != tuple->destination_port_be));
}

static __always_inline void remember_datagram(const struct packet *packet, const struct places *places, __u32 id,
				     enum verdict verdict, __u32 now)
{
	struct fragment fragment = {
		.first = packet->tuple,
		.to = packet->translated ? packet->to : packet->tuple,
		.id = id,
		.seen_seconds = now,
		.first_end = packet->end_offset - packet->transport_offset,
		.verdict = verdict_of_rest(verdict),
	};

	fragments.update((struct fragment_key *)&places->key, &fragment);
}

/* The verdict on a first fragment that is too small for its transport header: left alone only where nothing is ours. */
static __always_inline enum verdict verdict_on_tiny(const struct packet *packet)
{
	bool is_ours = find_flow(packet) || (packet->tuple.direction == FROM_POD && is_vip(&packet->tuple));

	return is_ours ? VERDICT_DROPPED_FRAGMENT : VERDICT_UNTOUCHED;
}

static __always_inline enum verdict verdict_on_first(struct packet *packet, const struct fragment_header *header)
{
	bool fits = read_first_fragment(packet);
	enum verdict verdict = VERDICT_UNTOUCHED;
	__u32 now = now_seconds();
	struct places places =
		places_of(packet->ifindex, packet->tuple.direction, &packet->tuple.source, header->id);
	struct fragment *known = find_datagram(&places, &packet->tuple, header->id, now);

	if (known && contradicts(known, &packet->tuple)) {
		known->verdict = VERDICT_DROPPED_FRAGMENT;
		return VERDICT_DROPPED_FRAGMENT;
	}
	if (!fits)
		verdict = verdict_on_tiny(packet);
	else if (packet->kind == PACKET_TRANSPORT)
		verdict = packet->tuple.direction == FROM_POD ? verdict_from_pod(packet) : verdict_to_pod(packet);
	remember_datagram(packet, &places, header->id, verdict, now);
	return verdict;
}

/* Give a fragment without a transport header the addresses of `to`. */
static __always_inline bool translate_addresses(struct packet *packet, const struct tuple *to)
{
	packet->to = *to;
	packet->translated = true;
	__s64 difference = address_difference(&packet->tuple, &packet->to);
	/* IPv4: the header's checksum makes up for its addresses. IPv6: nothing in this packet does. */
	__u64 flags = IP_FAMILY == 6 ? BPF_F_RECOMPUTE_CSUM : 0;

	return !(adjust_network_checksum(packet->skb, NETWORK_OFFSET, difference) ?:
		 bpf_skb_store_bytes(packet->skb, NETWORK_OFFSET + ADDRESSES_OFFSET, &packet->to.source,
				     2 * ADDRESS_BYTES, flags));
}

static __always_inline enum verdict verdict_on_unknown(const struct packet *packet)
{
	hand_to_predecessor(packet);
	return may_have_flows(packet) || is_on(SWITCH_TC) ? VERDICT_FRAGMENT : VERDICT_UNTOUCHED;
}

static __always_inline enum verdict verdict_on_later(struct packet *packet, const struct fragment_header *header)
{
	__u32 now = now_seconds();
	struct places places =
		places_of(packet->ifindex, packet->tuple.direction, &packet->tuple.source, header->id);
	struct fragment *known = find_datagram(&places, &packet->tuple, header->id, now);

	if (!known)
		return verdict_on_unknown(packet);
	if (header->offset_bytes < known->first_end ||
	    header->offset_bytes + packet->end_offset - packet->transport_offset > DATAGRAM_BYTES_MAX)
		known->verdict = VERDICT_DROPPED_FRAGMENT;
	if (known->seen_seconds != now)
		known->seen_seconds = now;
	if (!header->more)
		known->flags |= FRAGMENT_ENDED;
	enum verdict verdict = known->verdict;
	packet->tuple = known->first;
	if (verdict != VERDICT_TRANSLATED && verdict != VERDICT_REVERSED)
		return verdict;
	return translate_addresses(packet, &known->to) ? verdict : VERDICT_DROPPED_INTERNAL;
}

/* Finish a fragment that follows the first one: it is never answered, and has no checksum of its own. */
static __always_inline int finish_later(const struct packet *packet, enum verdict verdict)
{
	observe(packet, verdict);
	if (is_dropped(verdict))
		return TC_ACT_SHOT;
	return is_hairpin(packet) ? send_back(packet) : NEXT;
}

/* `direction` is a constant in each program, so that the program contains the code for that direction only. */
static __always_inline int meet_fragment(struct packet *packet, enum direction direction)
{
	struct fragment_header header = {};

	packet->tuple.direction = direction;
	packet->link = find_link(packet->ifindex);
	if (!read_fragment_header(packet, &header))
		return finish_later(packet, VERDICT_MALFORMED);
	return header.offset_bytes ? finish_later(packet, verdict_on_later(packet, &header))
				   : finish(packet, verdict_on_first(packet, &header));
}
