/* SPDX-License-Identifier: BSD-3-Clause */
#include "crc32c.h"

#include <isa-l/crc.h>
#include <limits.h>

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
	/* isa-l leaves both inversions to the caller, takes an int length and lacks a const. */
	unsigned char *p = (unsigned char *)(uintptr_t)data;

	crc = ~crc;
	while (len > INT_MAX) {
		crc = crc32_iscsi(p, 1 << 30, crc);
		p += 1 << 30;
		len -= 1 << 30;
	}
	return ~crc32_iscsi(p, (int)len, crc);
}
