/* SPDX-License-Identifier: GPL-2.0 */
/* == Fragments == */

/* fragments: a place in the share of a link. A datagram has two places that it may stand at, by its hash. */
struct fragment_key {
	__u32 ifindex;	/* of the pod's link, on the host's side */
	__u16 place;
	__u8 direction;	/* enum direction */
	__u8 pad;
};
ASSERT_SIZE(fragment_key, 8);

enum fragment_flags {
	FRAGMENT_ENDED = 1 << 0,	/* the last fragment was seen: another datagram may take the place */
};

/* What was decided for a datagram when its first fragment came; it holds for all fragments. */
struct fragment {
	struct tuple first;	/* of the first fragment, as it came */
	struct tuple to;	/* what it became; the same if it was not translated */
	__u32 id;		/* its identification, as it is sent; IPv4 has 16 bits */
	__u32 seen_seconds;	/* CLOCK_MONOTONIC */
	__u16 first_end;	/* how many bytes of the datagram are in the first fragment */
	__u8 verdict;		/* enum verdict: of the fragments that follow */
	__u8 flags;		/* enum fragment_flags */
};
ASSERT_OFFSET(fragment, id, 4 * ADDRESS_BYTES + 16); ASSERT_SIZE(fragment, 4 * ADDRESS_BYTES + 28);
