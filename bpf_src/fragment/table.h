/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What was decided for the first fragment of a datagram is kept for those that follow it.
 *
 * Each link has a share of places for each direction, and a datagram may stand at two of them. So a pod that sends
 * first fragments without end displaces datagrams of its own only; strangers that send them to a pod share the pod's
 * other direction with the answers that it receives. A place is free once its datagram has ended, or nothing was seen
 * of it for FRAGMENT_SECONDS; where neither place is free, the older datagram is displaced.
 */

#define FRAGMENT_PLACES 256	/* the share of a link and direction; a power of two */
#define FRAGMENT_SECONDS 2

/* The two places where a datagram may stand: that of `key`, and the other one. */
struct places {
	struct fragment_key key;
	__u16 other;
};

/* The destination does not count: an ICMP error quotes the translated one. */
static __always_inline struct places places_of(__u32 ifindex, __u8 direction, const struct address *source,
					       __u32 id)
{
	__u32 hash = id * GOLDEN_RATIO_32;
	struct places places = { .key = { .ifindex = ifindex, .direction = direction } };

#pragma unroll
	for (int i = 0; i < ADDRESS_WORDS; i++)
		hash = (hash ^ (hash >> 15) ^ source->words[i]) * GOLDEN_RATIO_32;
	hash ^= hash >> 15;
	places.key.place = hash & (FRAGMENT_PLACES - 1);
	places.other = hash >> 16 & (FRAGMENT_PLACES - 1);
	return places;
}

static __always_inline bool is_forgotten(const struct fragment *fragment, __u32 now)
{
	return is_older(fragment->seen_seconds, now, FRAGMENT_SECONDS);
}

/* True if `fragment` stands for the datagram. In IPv6 any fragment but the first may lie about the protocol. */
static __always_inline bool is_of(const struct fragment *fragment, const struct tuple *tuple, __u32 id)
{
	return fragment->id == id && same_address(&fragment->first.source, &tuple->source) &&
	       same_address(&fragment->first.destination, &tuple->destination) &&
	       (IP_FAMILY == 6 || fragment->first.protocol == tuple->protocol);
}

/* What is known of the datagram that `tuple` is of; NULL: nothing. Then its first fragment may go to `places->key`. */
static __always_inline struct fragment *find_datagram(struct places *places, const struct tuple *tuple, __u32 id,
						      __u32 now)
{
	struct fragment *one = fragments.lookup(&places->key);
	if (one && !is_forgotten(one, now) && is_of(one, tuple, id))
		return one;
	bool is_free = !one || one->flags & FRAGMENT_ENDED || is_forgotten(one, now);
	__u32 one_seconds = one ? one->seen_seconds : 0;

	struct fragment_key key = places->key;
	key.place = places->other;
	struct fragment *two = fragments.lookup(&key);
	if (two && !is_forgotten(two, now) && is_of(two, tuple, id)) {
		places->key.place = places->other;
		return two;
	}
	if (!is_free && (!two || two->flags & FRAGMENT_ENDED || is_older(two->seen_seconds, one_seconds, 0)))
		places->key.place = places->other;
	return NULL;
}
