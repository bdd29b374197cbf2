// SPDX-License-Identifier: GPL-2.0
/*
 * The programs at a pod's link: from_pod on what the pod sends, to_pod on what it receives, and the rare things that
 * they tail-call. Compiled once per address family; the loader joins the sources into one text.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#include "contract.h"
#include "forward.h"
#include "maps.h"
#include "packet.h"
#include "conntrack.h"
#include "service.h"
#include "nat.h"
#include "sctp.h"
#include "observe.h"
#include "icmp.h"
#include "reject.h"

/* Count the verdict and do what it says. `to` is what the packet's tuple has become, or NULL. */
static __always_inline int finish(const struct packet *packet, enum verdict verdict, const struct tuple *to)
{
	observe(packet, verdict, to);
	if (is_dropped(verdict))
		return TC_ACT_SHOT;
	if (is_answered(verdict)) {
		programs.call(packet->skb, PROGRAM_REJECT);
		return TC_ACT_SHOT;
	}
	/* The pod's own end of the link is the only one that a hairpin packet can go to. */
	bool hairpin = to && packet->tuple.direction == FROM_POD && to->direction == FROM_POD;
	if (to && packet->protocol == IPPROTO_SCTP) {
		packet->skb->cb[ARGUMENT_PORTS_DIFFERENCE] = ports_word(&packet->tuple) ^ ports_word(to);
		packet->skb->cb[ARGUMENT_SEND_BACK] = hairpin;
		programs.call(packet->skb, PROGRAM_SCTP_CHECKSUM);
		return TC_ACT_SHOT;
	}
	return hairpin ? send_back(packet->skb) : NEXT;
}

/* A packet without a tuple: ICMP errors may quote one, everything else is the host's. */
static __always_inline int finish_other(const struct packet *packet)
{
	switch (packet->kind) {
	case PACKET_ICMP_ERROR:
		packet->skb->cb[ARGUMENT_DIRECTION] = packet->tuple.direction;
		programs.call(packet->skb, PROGRAM_ICMP_ERROR);
		return finish(packet, VERDICT_DROPPED_INTERNAL, NULL);
	case PACKET_FRAGMENT:
		return finish(packet, VERDICT_FRAGMENT, NULL);
	case PACKET_MALFORMED:
		return finish(packet, VERDICT_MALFORMED, NULL);
	default:
		return finish(packet, VERDICT_UNTOUCHED, NULL);
	}
}

/* May this packet go on with the flow that it was found to have? If not, a backend is chosen anew, or the flow is reset. */
enum flow_fate { FLOW_GOES_ON, FLOW_BEGINS_ANEW, FLOW_IS_RESET };

static __always_inline enum flow_fate fate_of(const struct packet *packet, const struct flow *flow, __u32 now)
{
	if (is_expired(flow, now) || (is_syn(packet) && flow->state == FLOW_CLOSED))
		return FLOW_BEGINS_ANEW;
	struct backend *backend = backends.lookup((__u32 *)&flow->backend_id);
	/* Another epoch: the id has been given away, and nothing more will be learned of the backend of this flow. */
	if (flow->flags & FLOW_REPLY || !backend || backend->epoch != flow->epoch || backend->state == BACKEND_USABLE)
		return FLOW_GOES_ON;
	bool ends = backend->state == BACKEND_GONE || backend->state == BACKEND_LEFT;
	if (packet->protocol == IPPROTO_UDP)
		return ends ? FLOW_BEGINS_ANEW : FLOW_GOES_ON;
	if (is_syn(packet))
		return ends || flow->state != FLOW_NEW ? FLOW_BEGINS_ANEW : FLOW_GOES_ON;
	return backend->state == BACKEND_GONE ? FLOW_IS_RESET : FLOW_GOES_ON;
}

/* The first packet of a flow, or one that belongs to none. */
static __always_inline int begin_flow(const struct packet *packet)
{
	if (packet->protocol != IPPROTO_UDP && !is_syn(packet))
		return finish(packet, VERDICT_MIDSTREAM, NULL);

	__u32 now = now_seconds();
	struct choice choice = choose_backend(packet, now);
	if (!choice.backend_id)
		return finish(packet, choice.verdict == VERDICT_BALANCED ? VERDICT_DROPPED_INTERNAL : choice.verdict, NULL);

	struct flow flow = {};
	enum verdict verdict = create_flow(packet, choice.backend_id, now, &flow);
	if (verdict != VERDICT_BALANCED)
		return finish(packet, verdict, NULL);
	if (!translate(packet, &flow.to))
		verdict = VERDICT_DROPPED_INTERNAL;
	return finish(packet, verdict, &flow.to);
}

int from_pod(struct __sk_buff *skb)
{
	if (skb->protocol != htons(ETHERTYPE) || skb->vlan_present)
		return NEXT;
	struct packet packet = parse_packet(skb, FROM_POD);
	if (packet.kind != PACKET_TRANSPORT)
		return finish_other(&packet);

	struct flow *flow = flows.lookup(&packet.tuple);
	if (!flow)
		return begin_flow(&packet);

	__u32 now = now_seconds();
	enum flow_fate fate = fate_of(&packet, flow, now);
	if (fate == FLOW_BEGINS_ANEW)
		return begin_flow(&packet);
	if (fate == FLOW_IS_RESET)
		return finish(&packet, VERDICT_RESET_BACKEND_GONE, NULL);

	touch(&packet, flow, now);
	enum verdict verdict = flow->flags & FLOW_REPLY ? VERDICT_REVERSED : VERDICT_TRANSLATED;
	struct tuple to = flow->to;
	return finish(&packet, translate(&packet, &to) ? verdict : VERDICT_DROPPED_INTERNAL, &to);
}

int to_pod(struct __sk_buff *skb)
{
	if (skb->protocol != htons(ETHERTYPE) || skb->vlan_present)
		return NEXT;
	struct packet packet = parse_packet(skb, TO_POD);
	if (packet.kind != PACKET_TRANSPORT)
		return finish_other(&packet);

	struct flow *flow = flows.lookup(&packet.tuple);
	if (!flow)
		return finish(&packet, VERDICT_UNTOUCHED, NULL);

	__u32 now = now_seconds();
	if (is_expired(flow, now))
		return finish(&packet, VERDICT_UNTOUCHED, NULL);
	touch(&packet, flow, now);
	struct tuple to = flow->to;
	return finish(&packet, translate(&packet, &to) ? VERDICT_REVERSED : VERDICT_DROPPED_INTERNAL, &to);
}

int reject(struct __sk_buff *skb)
{
	struct packet packet = parse_packet(skb, FROM_POD);

	return packet.protocol == IPPROTO_TCP ? answer_reset(&packet) : answer_unreachable(&packet);
}

int icmp_error(struct __sk_buff *skb)
{
	struct packet packet = parse_packet(skb, skb->cb[ARGUMENT_DIRECTION]);

	return finish(&packet, translate_icmp_error(&packet), NULL);
}

int sctp_checksum(struct __sk_buff *skb)
{
	struct packet packet = parse_packet(skb, FROM_POD);
	__u32 difference = skb->cb[ARGUMENT_PORTS_DIFFERENCE];

	if (difference && !adjust_sctp_checksum(&packet, difference))
		return finish(&packet, VERDICT_DROPPED_INTERNAL, NULL);
	return skb->cb[ARGUMENT_SEND_BACK] ? send_back(skb) : NEXT;
}
