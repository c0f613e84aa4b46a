/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pool_space.h: which granules of a pool are free. Numbers only: nothing is kept in the memory itself, which may be slow to
 * reach, or gone. The caller locks.
 *
 * Free runs never touch (neighbours are merged at once). They lie in bins by length, an exact one for each length up to
 * 256 granules (1 MiB) and eight for each power of two above, with a bit map over the bins: best fit in constant time for
 * the lengths that matter, and a list of at most 16 runs is looked through above.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define SPACE_EXACT 256u
#define SPACE_BINS (SPACE_EXACT + 24u * 8u)
#define SPACE_NONE 0xFFFFFFFFu

struct space {
	uint32_t n, free;
	uint32_t *len;         /* at the first and the last granule of a free run: its length; 0 everywhere else */
	uint32_t *next, *prev; /* at the first granule of a free run */
	uint32_t heads[SPACE_BINS];
	uint64_t map[SPACE_BINS / 64];
};

struct space_run {
	uint32_t at, n;
};

int space_init(struct space *space, uint32_t n); /* all free; 0 or -ENOMEM */
void space_fini(struct space *space);

/* One run where one is free, else the longest ones, at most max. Returns their number; 0: cannot be had, nothing taken. */
uint32_t space_take(struct space *space, uint32_t n, struct space_run *runs, uint32_t max);
/* A run just as it was given. */
void space_give(struct space *space, uint32_t at, uint32_t n);

uint32_t space_largest(const struct space *space); /* exact up to SPACE_EXACT, above it at most an eighth too small */
bool space_sound(const struct space *space);       /* tests: everything that must hold, holds */
