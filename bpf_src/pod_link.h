/* SPDX-License-Identifier: GPL-2.0 */
/* What can be said of a pod's link without looking at its connections: see struct pod_link and struct standing. */

/* The element of a link; NULL if the link has none, because it is new or another link has the element. */
static __always_inline struct pod_link *find_link(__u32 ifindex)
{
	__u32 index = ifindex % POD_LINKS_MAX;
	struct pod_link *link = pod_links.lookup(&index);

	if (!link || link->ifindex != ifindex)
		link = NULL;
	/* For every verifier: clang 14 would derive from other values whether `link` is NULL, and none follows that. */
	asm volatile("" : "+r"(link));
	return link;
}

/* False only if the link certainly has nothing of the kind. */
static __always_inline bool may_exist(const struct standing *standing)
{
	return standing->settled != standing->made + 1;
}

/*
 * Call this once the new entry can be found: earlier, the daemon could scan, miss the entry, and settle all the same.
 */
static __always_inline void note_made(struct standing *standing)
{
	lock_xadd(&standing->made, 1);
}
