/* SPDX-License-Identifier: BSD-3-Clause */
#include "hist.h"

#include <math.h>
#include <string.h>

void hist_init(struct hist *hist)
{
	memset(hist, 0, sizeof(*hist));
	hist->min = UINT64_MAX;
}

void hist_merge(struct hist *into, const struct hist *from)
{
	into->count += from->count;
	into->sum += from->sum;
	if (from->min < into->min)
		into->min = from->min;
	if (from->max > into->max)
		into->max = from->max;
	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		into->bucket[i] += from->bucket[i];
}

double hist_mean(const struct hist *hist)
{
	return hist->count ? (double)hist->sum / (double)hist->count : 0;
}

uint64_t hist_low(unsigned index)
{
	if (index < 2 * HIST_SUB)
		return index;
	unsigned shift = index / HIST_SUB - 1;
	return (uint64_t)(index % HIST_SUB + HIST_SUB) << shift;
}

double hist_percentile(const struct hist *hist, double percent)
{
	if (hist->count == 0)
		return 0;
	double wanted = ceil(percent / 100 * (double)hist->count);
	uint64_t rank = wanted < 1 ? 1 : (uint64_t)wanted, seen = 0;
	if (rank >= hist->count)
		return (double)hist->max;
	unsigned i = 0;
	while (seen + hist->bucket[i] < rank)
		seen += hist->bucket[i++];
	double low = (double)hist_low(i), high = (double)hist_low(i + 1) - 1, middle = (low + high) / 2;
	return fmin(fmax(middle, (double)hist->min), (double)hist->max);
}
