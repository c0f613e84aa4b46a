/* SPDX-License-Identifier: BSD-3-Clause
 *
 * hist.h: a histogram with buckets of constant relative width: 128 for each power of two, so a percentile is right to
 * 0.8 %. Values from 0 to HIST_VALUE_MAX; larger ones count as that.
 */
#pragma once

#include <stdint.h>

#define HIST_SUB_BITS 7
#define HIST_SUB (1u << HIST_SUB_BITS)
#define HIST_TOP_BIT 41 /* 2^42 ns are 73 minutes */
#define HIST_BUCKETS ((HIST_TOP_BIT - HIST_SUB_BITS + 2) * HIST_SUB)
#define HIST_VALUE_MAX ((1ull << (HIST_TOP_BIT + 1)) - 1)

struct hist {
	uint64_t count, sum, min, max; /* min is UINT64_MAX while empty */
	uint64_t bucket[HIST_BUCKETS];
};

void hist_init(struct hist *hist);
void hist_merge(struct hist *into, const struct hist *from);
double hist_mean(const struct hist *hist);

/* The smallest bucket's middle that `percent` (0 to 100) of the values do not exceed, kept between min and max;
 * 0 when empty. */
double hist_percentile(const struct hist *hist, double percent);

/* First value of a bucket; hist_low(i + 1) is the first value beyond it. */
uint64_t hist_low(unsigned index);

static inline unsigned hist_index(uint64_t value)
{
	if (value > HIST_VALUE_MAX)
		value = HIST_VALUE_MAX;
	if (value < HIST_SUB)
		return (unsigned)value;
	unsigned shift = 63u - (unsigned)__builtin_clzll(value) - HIST_SUB_BITS;
	return shift * HIST_SUB + (unsigned)(value >> shift);
}

static inline void hist_add(struct hist *hist, uint64_t value)
{
	hist->count++;
	hist->sum += value;
	if (value < hist->min)
		hist->min = value;
	if (value > hist->max)
		hist->max = value;
	hist->bucket[hist_index(value)]++;
}
