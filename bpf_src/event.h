/* SPDX-License-Identifier: GPL-2.0 */
/* Every packet ends in one verdict, which is always counted, and which `monitor` is told of while it listens. */

/* True for verdicts that packet after packet gets: `monitor` hears of them only if it asks for all. */
static __always_inline bool is_steady(enum verdict verdict)
{
	return verdict == VERDICT_UNTOUCHED || verdict == VERDICT_MIDSTREAM || verdict == VERDICT_TRANSLATED ||
	       verdict == VERDICT_REVERSED;
}

static __always_inline void put_address(__be32 *words, const struct address *address)
{
#pragma unroll
	for (int i = 0; i < 4; i++)
		words[i] = i < ADDRESS_WORDS ? address->words[i] : 0;
}

static __always_inline void tell(const struct tuple *from, const struct tuple *to, enum verdict verdict, __u32 ifindex,
				 __u32 bytes)
{
	struct event *event = events.ringbuf_reserve(sizeof(struct event));

	if (!event)
		return;
	event->time_ns = bpf_ktime_get_ns();
	put_address(event->source, &from->source);
	put_address(event->destination, &from->destination);
	put_address(event->to_source, &to->source);
	put_address(event->to_destination, &to->destination);
	event->source_port_be = from->source_port_be;
	event->destination_port_be = from->destination_port_be;
	event->to_source_port_be = to->source_port_be;
	event->to_destination_port_be = to->destination_port_be;
	event->ifindex = ifindex;
	event->bytes = bytes;
	event->verdict = verdict;
	event->protocol = from->protocol;
	event->direction = from->direction;
	event->family = IP_FAMILY;
	event->pad = 0;
	events.ringbuf_submit(event, 0);
}

/*
 * Increment this processor's counter. Without a packet (NULL) the program runs for a process, and the program
 * of another process may preempt it and count, too: only then the increment has to be atomic.
 */
static __always_inline void count(struct counter *counter, const struct packet *packet)
{
	if (!counter)
		return;
	if (!packet) {
		__sync_fetch_and_add(&counter->packets, 1);
		return;
	}
	counter->packets++;
	counter->bytes += packet->skb->len;
}

static __always_inline void observe(const struct packet *packet, enum verdict verdict)
{
	__u32 index = verdict;
	struct counter *counter = counters.lookup(&index);
	struct settings *live = live_settings();

	count(counter, packet);
	if (live && live->events_level > (is_steady(verdict) ? EVENTS_NOTABLE : EVENTS_OFF))
		tell(&packet->tuple, packet->translated ? &packet->to : &packet->tuple, verdict, packet->ifindex,
		     packet->skb->len);
}
