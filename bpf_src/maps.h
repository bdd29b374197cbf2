/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The maps. Each family has FAMILY_TABLEs of its own; both use the same SHARED_TABLEs.
 * IP_FAMILY and the sizes are constants that the loader puts in front of the sources. A node's own sizes are put in
 * only when the maps are made.
 */
#define FAMILY_TABLE(type, key, value, name, size, flags) BPF_F_TABLE(type, key, value, name, size, flags)
#define SHARED_TABLE(type, key, value, name, size, flags) BPF_F_TABLE(type, key, value, name, size, flags)

FAMILY_TABLE("hash", struct frontend_key, struct frontend, frontends, FRONTENDS_MAX, BPF_F_NO_PREALLOC);
FAMILY_TABLE("array", __u32, __u32, slots, SLOTS_MAX, BPF_F_MMAPABLE);
FAMILY_TABLE("array", __u32, struct backend, backends, BACKENDS_MAX, BPF_F_MMAPABLE);
/*
 * By backend id: one more than the backend's epoch when connect() last led a socket to it. Nobody has to search for
 * sockets of a backend that is gone if none was ever led to it.
 */
FAMILY_TABLE("array", __u32, __u32, led, BACKENDS_MAX, 0);
FAMILY_TABLE("lru_hash", struct tuple, struct flow, flows, FLOWS_MAX, 0);
FAMILY_TABLE("lru_hash", struct fragment_key, struct fragment, fragments, FRAGMENTS_MAX, 0);
FAMILY_TABLE("lru_hash", struct affinity_key, struct affinity, affinity, AFFINITY_MAX, 0);
FAMILY_TABLE("lpm_trie", struct source_range_key, __u32, source_ranges, SOURCE_RANGES_MAX, BPF_F_NO_PREALLOC);
FAMILY_TABLE("array", __u32, struct pod_link, pod_links, POD_LINKS_MAX, BPF_F_MMAPABLE);
FAMILY_TABLE("hash", struct address, struct pod, pods, PODS_MAX, 0);
FAMILY_TABLE("hash", struct tuple, struct host_flow, host_flows, HOST_FLOWS_MAX, BPF_F_NO_PREALLOC);
FAMILY_TABLE("lpm_trie", struct cluster_key, __u32, cluster, CLUSTER_MAX, BPF_F_NO_PREALLOC);
FAMILY_TABLE("prog", __u32, __u32, programs, PROGRAM_COUNT, 0);
FAMILY_TABLE("prog", __u32, __u32, predecessor, PREDECESSOR_COUNT, 0);

SHARED_TABLE("percpu_array", __u32, struct counter, counters, VERDICT_COUNT, 0);
SHARED_TABLE("percpu_array", __u32, struct counter, ways, WAY_COUNT, 0);
/* By ifindex: the links to other nodes that have our programs, so that answers can be redirected, too. */
SHARED_TABLE("hash", __u32, __u32, uplinks, UPLINKS_MAX, 0);
SHARED_TABLE("array", __u32, struct settings, settings, 1, BPF_F_MMAPABLE);
SHARED_TABLE("array", __u32, struct schema, schema, 1, 0);

static __always_inline struct settings *live_settings(void)
{
	__u32 first = 0;

	return settings.lookup(&first);
}

static __always_inline bool is_on(enum switches which)
{
	struct settings *live = live_settings();

	return live && live->switches & which;
}

/* BCC's macro for ring buffers counts in pages. Both families use this one. */
struct events_table_t {
	int key;
	__u32 leaf;
	void *(*ringbuf_reserve)(__u64);
	void (*ringbuf_submit)(void *, __u64);
	__u32 max_entries;
};
__attribute__((section("maps/ringbuf"))) struct events_table_t events = {
	.max_entries = EVENTS_BYTES,
};
