/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Balancing: from a VIP to a backend.
 *
 * The daemon replaces a set of backends by writing its slots to a fresh range and then the frontend in one write. So
 * `slot_base` and `slot_count` always belong together, and a slot that is read here stays valid for longer than a
 * packet takes.
 */
#define GOLDEN_RATIO_32 0x9e3779b9

/* What balancing decided: `backend_id` with VERDICT_BALANCED; any other verdict says why there is no backend. */
struct choice {
	enum verdict verdict;
	__u32 backend_id;
};

static __always_inline struct frontend *find_frontend(const struct tuple *tuple)
{
	struct frontend_key key = {
		.address = tuple->destination,
		.port_be = tuple->destination_port_be,
		.protocol = tuple->protocol,
	};

	return frontends.lookup(&key);
}

static __always_inline bool is_vip(const struct tuple *tuple)
{
	struct frontend_key key = { .address = tuple->destination };

	return frontends.lookup(&key);
}

static __always_inline bool in_source_range(const struct frontend *frontend, const struct tuple *tuple)
{
	struct source_range_key key = {
		.prefix_bits = 32 + 8 * ADDRESS_BYTES,
		.service_id = frontend->service_id,
		.client = tuple->source,
	};

	return source_ranges.lookup(&key);
}

/* The same connection always has the same hash; Maglev needs no more than that. */
static __always_inline __u32 tuple_hash(const struct tuple *tuple)
{
	__u32 hash = ((__u32)tuple->source_port_be << 16) ^ tuple->destination_port_be ^ tuple->protocol;

#pragma unroll
	for (int i = 0; i < ADDRESS_WORDS; i++) {
		hash = (hash ^ tuple->source.words[i]) * GOLDEN_RATIO_32;
		hash = (hash ^ (hash >> 15) ^ tuple->destination.words[i]) * GOLDEN_RATIO_32;
	}
	return hash ^ (hash >> 16);
}

/* The backend that this client used last; 0 if it is not usable any more or the affinity has timed out. */
static __always_inline __u32 affine_backend(const struct frontend *frontend, const struct affinity_key *key, __u32 now)
{
	struct affinity *last = affinity.lookup((struct affinity_key *)key);

	if (!last || is_older(last->last_used_seconds, now, frontend->affinity_seconds))
		return 0;
	struct backend *backend = backends.lookup(&last->backend_id);
	if (!backend || backend->epoch != last->epoch || backend->service_id != frontend->service_id ||
	    backend->state != BACKEND_USABLE)
		return 0;
	return last->backend_id;
}

static __always_inline __u32 pick_backend(const struct frontend *frontend, const struct tuple *tuple)
{
	/* At connect() a socket may have no port yet: then any number is as good as a hash. */
	bool by_hash = frontend->flags & FRONTEND_MAGLEV && tuple->source_port_be;
	__u32 number = by_hash ? tuple_hash(tuple) : bpf_get_prandom_u32();
	__u32 index = frontend->slot_base + (__u32)(((__u64)number * frontend->slot_count) >> 32);
	__u32 *backend_id = slots.lookup(&index);

	return backend_id ? *backend_id : 0;
}

/* Choose a backend of `frontend`, the frontend of the tuple's destination; NULL if there is none. */
static __always_inline struct choice choose_from(const struct frontend *frontend, const struct tuple *tuple, __u32 now)
{
	struct choice choice = {};

	if (!frontend) {
		choice.verdict = is_vip(tuple) ? VERDICT_REJECTED_UNDEFINED_PORT : VERDICT_UNTOUCHED;
		return choice;
	}
	if (frontend->flags & FRONTEND_SOURCE_RANGES && !in_source_range(frontend, tuple)) {
		choice.verdict = VERDICT_DROPPED_SOURCE_RANGE;
		return choice;
	}
	if (!frontend->slot_count) {
		choice.verdict = frontend->flags & FRONTEND_DROP ? VERDICT_DROPPED_TRAFFIC_POLICY
								 : VERDICT_REJECTED_NO_BACKEND;
		return choice;
	}
	choice.verdict = VERDICT_BALANCED;
	if (!frontend->affinity_seconds) {
		choice.backend_id = pick_backend(frontend, tuple);
		return choice;
	}

	struct affinity_key key = { .client = tuple->source, .service_id = frontend->service_id };
	choice.backend_id = affine_backend(frontend, &key, now) ?: pick_backend(frontend, tuple);
	struct backend *backend = backends.lookup(&choice.backend_id);
	if (backend) {
		struct affinity used = {
			.backend_id = choice.backend_id,
			.epoch = backend->epoch,
			.last_used_seconds = now,
		};
		affinity.update(&key, &used);
	}
	return choice;
}

static __always_inline struct choice choose_backend(const struct tuple *tuple, __u32 now)
{
	return choose_from(find_frontend(tuple), tuple, now);
}
