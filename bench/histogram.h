/*
 * Latencies in nanoseconds, counted in buckets whose width is 1/64 of their power of two: any percentile is right within 1.6%,
 * recording is a shift and an increment, and the memory is fixed (28 KiB).
 */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <stdint.h>

#define SUB_BITS 6
#define SUB_BUCKETS (1u << SUB_BITS)
#define BUCKETS (SUB_BUCKETS * (64 - SUB_BITS + 1))

struct histogram {
	uint64_t counts[BUCKETS];
	uint64_t total, sum, smallest, largest;
};

static inline unsigned bucket_of(uint64_t value)
{
	if (value < SUB_BUCKETS)
		return value;
	unsigned shift = 63 - __builtin_clzll(value) - SUB_BITS;
	return (shift + 1) * SUB_BUCKETS + (unsigned)((value >> shift) - SUB_BUCKETS);
}

/* The middle of a bucket. */
static inline uint64_t value_of(unsigned bucket)
{
	if (bucket < 2 * SUB_BUCKETS)
		return bucket;
	unsigned shift = bucket / SUB_BUCKETS - 1;
	return ((uint64_t)(bucket % SUB_BUCKETS + SUB_BUCKETS) << shift) + (1ull << shift) / 2;
}

static inline void record(struct histogram *histogram, uint64_t value)
{
	histogram->counts[bucket_of(value)]++;
	histogram->total++;
	histogram->sum += value;
	if (value < histogram->smallest || histogram->total == 1)
		histogram->smallest = value;
	if (value > histogram->largest)
		histogram->largest = value;
}

/* The value that `share` (0 to 1) of all recorded ones do not exceed; 0 where nothing was recorded. */
static inline uint64_t percentile(const struct histogram *histogram, double share)
{
	double rank = share * histogram->total;
	uint64_t seen = 0;

	for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
		seen += histogram->counts[bucket];
		if (seen && seen >= rank)
			return value_of(bucket);
	}
	return histogram->largest;
}

#endif
