/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The maps. Each is pinned as PIN_DIR/<name><family suffix>; those without a suffix serve both families.
 * The sizes, IP_FAMILY, FAMILY_SUFFIX and PIN_DIR are constants that the loader puts in front of the sources.
 */
#define FAMILY_PIN(name) PIN_DIR "/" name FAMILY_SUFFIX
#define SHARED_PIN(name) PIN_DIR "/" name

BPF_TABLE_PINNED("hash", struct frontend_key, struct frontend, frontends, FRONTENDS_MAX, FAMILY_PIN("frontends"),
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("array", __u32, __u32, slots, SLOTS_MAX, FAMILY_PIN("slots"), BPF_F_MMAPABLE);
BPF_TABLE_PINNED("array", __u32, struct backend, backends, BACKENDS_MAX, FAMILY_PIN("backends"), BPF_F_MMAPABLE);
/*
 * By backend id: one more than the backend's epoch when connect() last led a socket to it. Nobody has to search for
 * sockets of a backend that is gone if none was ever led to it.
 */
BPF_TABLE_PINNED("array", __u32, __u32, led, BACKENDS_MAX, FAMILY_PIN("led"), 0);
BPF_TABLE_PINNED("lru_hash", struct tuple, struct flow, flows, FLOWS_MAX, FAMILY_PIN("flows"), 0);
BPF_TABLE_PINNED("lru_hash", struct affinity_key, struct affinity, affinity, AFFINITY_MAX, FAMILY_PIN("affinity"), 0);
BPF_TABLE_PINNED("lpm_trie", struct source_range_key, __u32, source_ranges, SOURCE_RANGES_MAX,
		 FAMILY_PIN("source_ranges"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("array", __u32, struct pod_link, pod_links, POD_LINKS_MAX, FAMILY_PIN("pod_links"), BPF_F_MMAPABLE);
BPF_TABLE_PINNED("hash", struct address, struct pod, pods, PODS_MAX, FAMILY_PIN("pods"), 0);
BPF_TABLE_PINNED("hash", struct tuple, struct host_flow, host_flows, HOST_FLOWS_MAX, FAMILY_PIN("host_flows"),
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct cluster_key, __u32, cluster, CLUSTER_MAX, FAMILY_PIN("cluster"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("prog", __u32, __u32, programs, PROGRAM_COUNT, FAMILY_PIN("programs"), 0);
BPF_TABLE_PINNED("prog", __u32, __u32, predecessor, PREDECESSOR_COUNT, FAMILY_PIN("predecessor"), 0);

BPF_TABLE_PINNED("percpu_array", __u32, struct counter, counters, VERDICT_COUNT, SHARED_PIN("counters"), 0);
BPF_TABLE_PINNED("percpu_array", __u32, struct counter, ways, WAY_COUNT, SHARED_PIN("ways"), 0);
/* By ifindex: the links to other nodes that have our programs, so that answers can be redirected, too. */
BPF_TABLE_PINNED("hash", __u32, __u32, uplinks, UPLINKS_MAX, SHARED_PIN("uplinks"), 0);
BPF_TABLE_PINNED("array", __u32, struct settings, settings, 1, SHARED_PIN("settings"), BPF_F_MMAPABLE);
BPF_TABLE_PINNED("array", __u32, struct schema, schema, 1, SHARED_PIN("schema"), 0);

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

/* BCC has no macro for a pinned ring buffer. */
struct events_table_t {
	int key;
	__u32 leaf;
	void *(*ringbuf_reserve)(__u64);
	void (*ringbuf_submit)(void *, __u64);
	__u32 max_entries;
};
__attribute__((section("maps/ringbuf:" SHARED_PIN("events")))) struct events_table_t events = {
	.max_entries = EVENTS_BYTES,
};
