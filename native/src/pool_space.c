/* SPDX-License-Identifier: BSD-3-Clause */
#include "pool_space.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOOK 16 /* runs of a bin that holds several lengths */
#define EXACT_SHIFT 8

_Static_assert(SPACE_EXACT == 1u << EXACT_SHIFT && SPACE_BINS % 64 == 0, "");

static uint32_t bin_of(uint32_t n)
{
	unsigned top;

	if (n <= SPACE_EXACT)
		return n - 1;
	top = 31u - (unsigned)__builtin_clz(n);
	return SPACE_EXACT + (top - EXACT_SHIFT) * 8 + (n >> (top - 3) & 7);
}

static void insert(struct space *space, uint32_t at, uint32_t n)
{
	uint32_t bin = bin_of(n), head = space->heads[bin];

	space->len[at] = space->len[at + n - 1] = n;
	space->next[at] = head;
	space->prev[at] = SPACE_NONE;
	if (head != SPACE_NONE)
		space->prev[head] = at;
	space->heads[bin] = at;
	space->map[bin / 64] |= 1ull << bin % 64;
}

static void take_out(struct space *space, uint32_t at)
{
	uint32_t n = space->len[at], bin = bin_of(n), next = space->next[at], prev = space->prev[at];

	if (next != SPACE_NONE)
		space->prev[next] = prev;
	if (prev != SPACE_NONE)
		space->next[prev] = next;
	else
		space->heads[bin] = next;
	if (space->heads[bin] == SPACE_NONE)
		space->map[bin / 64] &= ~(1ull << bin % 64);
	space->len[at] = space->len[at + n - 1] = 0;
}

int space_init(struct space *space, uint32_t n)
{
	assert(n > 0);
	memset(space, 0, sizeof(*space));
	memset(space->heads, 0xFF, sizeof(space->heads));
	space->len = calloc(n, sizeof(*space->len));
	space->next = malloc(n * sizeof(*space->next));
	space->prev = malloc(n * sizeof(*space->prev));
	if (!space->len || !space->next || !space->prev) {
		space_fini(space);
		return -ENOMEM;
	}
	space->n = space->free = n;
	insert(space, 0, n);
	return 0;
}

void space_fini(struct space *space)
{
	free(space->len);
	free(space->next);
	free(space->prev);
	memset(space, 0, sizeof(*space));
}

/* The first bin from there on that is not empty; SPACE_BINS: none. */
static uint32_t bin_from(const struct space *space, uint32_t bin)
{
	uint64_t word;

	if (bin >= SPACE_BINS)
		return SPACE_BINS;
	word = space->map[bin / 64] & ~0ull << bin % 64;
	for (uint32_t i = bin / 64;; word = space->map[i]) {
		if (word)
			return i * 64 + (uint32_t)__builtin_ctzll(word);
		if (++i == SPACE_BINS / 64)
			return SPACE_BINS;
	}
}

static uint32_t bin_last(const struct space *space)
{
	for (uint32_t i = SPACE_BINS / 64; i-- > 0;)
		if (space->map[i])
			return i * 64 + 63u - (uint32_t)__builtin_clzll(space->map[i]);
	return SPACE_BINS;
}

/* The shortest run of at least n granules, as far as the bins tell. */
static uint32_t best_fit(const struct space *space, uint32_t n)
{
	uint32_t bin = bin_of(n), best = SPACE_NONE;

	if (bin >= SPACE_EXACT) {
		uint32_t at = space->heads[bin++];

		for (unsigned i = 0; i < LOOK && at != SPACE_NONE; i++, at = space->next[at])
			if (space->len[at] >= n && (best == SPACE_NONE || space->len[at] < space->len[best]))
				best = at;
		if (best != SPACE_NONE)
			return best;
	}
	bin = bin_from(space, bin);
	return bin < SPACE_BINS ? space->heads[bin] : SPACE_NONE;
}

/* The first n granules of a free run. */
static void split(struct space *space, uint32_t at, uint32_t n)
{
	uint32_t left = space->len[at] - n;

	take_out(space, at);
	if (left)
		insert(space, at + n, left);
	space->free -= n;
}

uint32_t space_take(struct space *space, uint32_t n, struct space_run *runs, uint32_t max)
{
	uint32_t count = 0, left = n;

	if (n == 0 || n > space->free)
		return 0;
	while (left && count < max) {
		uint32_t at = best_fit(space, left), take = left;

		if (at == SPACE_NONE) {
			at = space->heads[bin_last(space)]; /* there is one: n granules are free */
			if (space->len[at] < take)
				take = space->len[at];
		}
		split(space, at, take);
		runs[count++] = (struct space_run){ at, take };
		left -= take;
	}
	if (!left)
		return count;
	while (count-- > 0)
		space_give(space, runs[count].at, runs[count].n);
	return 0;
}

void space_give(struct space *space, uint32_t at, uint32_t n)
{
	uint32_t end = at + n;

	assert(n > 0 && end <= space->n && space->len[at] == 0 && space->len[end - 1] == 0);
	space->free += n;
	if (at > 0 && space->len[at - 1]) {
		uint32_t before = space->len[at - 1];

		at -= before;
		take_out(space, at);
	}
	if (end < space->n && space->len[end]) {
		uint32_t after = space->len[end];

		take_out(space, end);
		end += after;
	}
	insert(space, at, end - at);
}

uint32_t space_largest(const struct space *space)
{
	uint32_t bin = bin_last(space), top;

	if (bin == SPACE_BINS)
		return 0;
	if (bin < SPACE_EXACT)
		return bin + 1;
	top = (bin - SPACE_EXACT) / 8 + EXACT_SHIFT;
	return (8u + (bin - SPACE_EXACT) % 8) << (top - 3);
}

bool space_sound(const struct space *space)
{
	uint32_t listed = 0, free = 0, runs = 0, at = 0;

	for (uint32_t bin = 0; bin < SPACE_BINS; bin++) {
		uint32_t before = SPACE_NONE;

		if ((space->heads[bin] != SPACE_NONE) != (space->map[bin / 64] >> bin % 64 & 1))
			return false;
		for (uint32_t run = space->heads[bin]; run != SPACE_NONE; before = run, run = space->next[run]) {
			uint32_t n = space->len[run];

			if (!n || run + n > space->n || bin_of(n) != bin || space->len[run + n - 1] != n ||
			    space->prev[run] != before)
				return false;
			if (run + n < space->n && space->len[run + n]) /* two free runs that touch */
				return false;
			free += n;
			listed++;
		}
	}
	/* Nothing else is marked: where len says 0, there is no end of a free run. */
	for (; at < space->n; at += space->len[at] ? space->len[at] : 1)
		runs += space->len[at] != 0;
	return free == space->free && runs == listed;
}
