/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The programs at a link to other nodes. from_uplink redirects arriving packets into their pods; packets that it leaves
 * to the host's stack meet to_pod at the pod's link. to_uplink records the connections that leave through the host's
 * stack.
 */

int from_uplink(struct __sk_buff *skb)
{
	if (!is_ours(skb) || !is_on(SWITCH_REDIRECT))
		return NEXT;
	struct packet packet = parse_packet(skb, TO_POD);
	packet.is_at_uplink = true;
	if (packet.kind == PACKET_ICMP_ERROR)
		programs.call(skb, PROGRAM_UPLINK_ERROR);
	struct tuple key = outgoing(&packet);
	struct route route = choose_way_in(&packet, &key, may_begin(&packet));
	return route.pod && route.link ? enter_pod(&packet, &route, PACKET_TRANSPORT) : NEXT;
}

int to_uplink(struct __sk_buff *skb)
{
	if (!is_ours(skb) || !is_on(SWITCH_REDIRECT))
		return NEXT;
	if (skb->tc_index == REDIRECTED) {
		skb->tc_index = 0; /* the other node may be a network namespace of this machine, with programs, too */
		return NEXT;
	}
	struct packet packet = parse_packet(skb, FROM_POD);
	note_departure(&packet);
	return NEXT;
}

int uplink_error(struct __sk_buff *skb)
{
	struct packet packet = parse_packet(skb, TO_POD);
	packet.is_at_uplink = true;
	struct packet quoted = parse_quoted(&packet);
	if (quoted.kind != PACKET_TRANSPORT || !same_address(&packet.tuple.destination, &quoted.tuple.source))
		return NEXT;
	struct tuple key = reversed(&quoted.tuple, FROM_POD);
	struct route route = choose_way_in(&packet, &key, false);
	return route.pod && route.link ? enter_pod(&packet, &route, PACKET_ICMP_ERROR) : NEXT;
}
