/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pattern.h: what --verify writes. Every LBA starts with its own address and the generation of its write, so that a
 * mismatch tells what is there instead; the rest follows from seed, address and generation.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pattern_error {
	uint64_t lba;    /* of the block that differs */
	uint32_t offset; /* first byte that differs, within the block */
	uint8_t found, expected;
	uint64_t found_lba, found_generation; /* what the block claims to be */
	uint32_t differing;                   /* bytes of the block */
};

void pattern_fill(uint8_t *data, size_t len, uint32_t lba_size, uint64_t lba, uint64_t generation, uint64_t seed);

/* True if the data is that pattern; otherwise `error` describes the first block that differs. */
bool pattern_check(const uint8_t *data, size_t len, uint32_t lba_size, uint64_t lba, uint64_t generation,
		   uint64_t seed, struct pattern_error *error);

static inline uint64_t mix64(uint64_t x) /* SplitMix64's output function */
{
	x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
	x = (x ^ x >> 27) * 0x94D049BB133111EBull;
	return x ^ x >> 31;
}
