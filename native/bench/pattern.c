/* SPDX-License-Identifier: BSD-3-Clause */
#include "pattern.h"

#include <string.h>

#define GOLDEN 0x9E3779B97F4A7C15ull
#define LBA_SIZE_MAX 65536

static void fill_block(uint8_t *data, uint32_t len, uint64_t lba, uint64_t generation, uint64_t seed)
{
	uint64_t word = mix64(seed + GOLDEN * (lba + 1)) ^ mix64(generation + GOLDEN);
	memcpy(data, &lba, 8);
	memcpy(data + 8, &generation, 8);
	for (uint32_t at = 16; at < len; at += 8) {
		word += GOLDEN;
		uint64_t value = word ^ word >> 29;
		memcpy(data + at, &value, 8);
	}
}

void pattern_fill(uint8_t *data, size_t len, uint32_t lba_size, uint64_t lba, uint64_t generation, uint64_t seed)
{
	for (size_t at = 0; at < len; at += lba_size)
		fill_block(data + at, lba_size, lba++, generation, seed);
}

bool pattern_check(const uint8_t *data, size_t len, uint32_t lba_size, uint64_t lba, uint64_t generation,
		   uint64_t seed, struct pattern_error *error)
{
	uint8_t expected[LBA_SIZE_MAX];
	for (size_t at = 0; at < len; at += lba_size, lba++) {
		fill_block(expected, lba_size, lba, generation, seed);
		if (memcmp(data + at, expected, lba_size) == 0)
			continue;
		*error = (struct pattern_error){.lba = lba};
		memcpy(&error->found_lba, data + at, 8);
		memcpy(&error->found_generation, data + at + 8, 8);
		for (uint32_t i = lba_size; i-- > 0;) {
			if (data[at + i] == expected[i])
				continue;
			error->offset = i;
			error->found = data[at + i];
			error->expected = expected[i];
			error->differing++;
		}
		return false;
	}
	return true;
}
