/* SPDX-License-Identifier: BSD-3-Clause */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* CRC32C as NVMe/TCP digests want it (initial value and final XOR FFFFFFFFh); crc: of what came before, 0 at first. */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);
