// SPDX-License-Identifier: GPL-2.0
/*
 * The programs at a pod's link: from_pod for packets that the pod sends, to_pod for packets that it receives, and the
 * programs that these tail-call for rare packets.
 */

int from_pod(struct __sk_buff *skb)
{
	if (!is_ours(skb))
		return NEXT;
	struct packet packet = parse_packet(skb, FROM_POD);
	packet.link = find_link(packet.ifindex);
	int action = finish(&packet, packet.kind == PACKET_TRANSPORT ? verdict_from_pod(&packet) : leave(&packet));
	if (action != NEXT)
		return action;
	struct route route = choose_way(&packet);
	return forward(&packet, &route, PACKET_TRANSPORT);
}

int to_pod(struct __sk_buff *skb)
{
	if (!is_ours(skb))
		return NEXT;
	struct packet packet = parse_packet(skb, TO_POD);
	packet.link = find_link(packet.ifindex);
	note_arrival(&packet);
	return finish(&packet, packet.kind == PACKET_TRANSPORT ? verdict_to_pod(&packet) : leave(&packet));
}

int fragment_from_pod(struct __sk_buff *skb)
{
	struct packet packet = parse_packet(skb, FROM_POD);
	int action = meet_fragment(&packet, FROM_POD);

	if (action == NEXT)
		count_way_of_fragment(&packet);
	return action;
}

int fragment_to_pod(struct __sk_buff *skb)
{
	struct packet packet = parse_packet(skb, TO_POD);

	return meet_fragment(&packet, TO_POD);
}

int reject(struct __sk_buff *skb)
{
	struct packet packet = parse_packet(skb, FROM_POD);

	go_on_to_transport(&packet);
	return packet.protocol == IPPROTO_TCP ? answer_reset(&packet) : answer_unreachable(&packet);
}

int icmp_error(struct __sk_buff *skb)
{
	struct packet packet = parse_packet(skb, skb->cb[ARGUMENT_DIRECTION]);
	packet.link = find_link(packet.ifindex);
	int action = finish(&packet, translate_icmp_error(&packet));
	if (action != NEXT || packet.tuple.direction == TO_POD)
		return action;
	struct route route = choose_way(&packet);
	return forward(&packet, &route, PACKET_ICMP_ERROR);
}

int sctp_checksum(struct __sk_buff *skb)
{
	struct packet packet = parse_packet(skb, FROM_POD);
	__u32 difference = skb->cb[ARGUMENT_PORTS_DIFFERENCE];

	if (packet.kind == PACKET_FRAGMENT) {
		go_on_to_transport(&packet);
		packet.end_offset = sctp_end(&packet);
	}
	if (difference && !adjust_sctp_checksum(&packet, difference))
		return finish(&packet, VERDICT_DROPPED_INTERNAL);
	return skb->cb[ARGUMENT_SEND_BACK] ? send_back(&packet) : NEXT;
}
