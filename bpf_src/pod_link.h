/* SPDX-License-Identifier: GPL-2.0 */
/* What is known of a pod's link without looking at its connections: see struct pod_link and struct standing. */

/* The element of a link; NULL where it has none, for it is new, or another one has its place. */
static __always_inline struct pod_link *find_link(__u32 ifindex)
{
	__u32 index = ifindex % POD_LINKS_MAX;
	struct pod_link *link = pod_links.lookup(&index);

	if (!link || link->ifindex != ifindex)
		link = NULL;
	/* For every verifier: clang 14 would derive from other values whether this is NULL, and the verifier can't. */
	asm volatile("" : "+r"(link));
	return link;
}

static __always_inline bool may_exist(const struct standing *standing)
{
	return standing->settled != standing->made + 1;
}

/* Something of the kind was made: not before it can be found, or the daemon could look, miss it, and count it as looked for. */
static __always_inline void note_made(struct standing *standing)
{
	lock_xadd(&standing->made, 1);
}
