/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pdu.h: NVMe/TCP PDU types and flags (NVM Express TCP Transport 1.1, 3.6), little-endian access, CRC-32C.
 */
#pragma once

#include <endian.h>
#include <isa-l/crc.h>
#include <stdint.h>
#include <string.h>

enum pdu_type {
	PDU_ICREQ = 0x00,
	PDU_ICRESP = 0x01,
	PDU_C2H_TERM = 0x03,
	PDU_CAPSULE_CMD = 0x04,
	PDU_CAPSULE_RESP = 0x05,
	PDU_H2C_DATA = 0x06,
	PDU_C2H_DATA = 0x07,
	PDU_R2T = 0x09,
};

enum pdu_flag { PDU_HDGSTF = 1, PDU_DDGSTF = 2, PDU_LAST = 4, PDU_SUCCESS = 8 };

#define PDU_COMMON 8 /* bytes of the common header */
#define PDU_IC_LEN 128
#define PDU_CMD_HLEN 72
#define PDU_DATA_HLEN 24 /* CapsuleResp, H2CData, C2HData, R2T */
#define PDU_PDO_MAX (PDU_CMD_HLEN + 4 + 128)
#define TERM_LEN_MAX 152

static inline uint16_t get16(const uint8_t *p)
{
	uint16_t value;
	memcpy(&value, p, sizeof(value));
	return le16toh(value);
}

static inline uint32_t get32(const uint8_t *p)
{
	uint32_t value;
	memcpy(&value, p, sizeof(value));
	return le32toh(value);
}

static inline uint64_t get64(const uint8_t *p)
{
	uint64_t value;
	memcpy(&value, p, sizeof(value));
	return le64toh(value);
}

static inline void put16(uint8_t *p, uint16_t value)
{
	value = htole16(value);
	memcpy(p, &value, sizeof(value));
}

static inline void put32(uint8_t *p, uint32_t value)
{
	value = htole32(value);
	memcpy(p, &value, sizeof(value));
}

static inline void put64(uint8_t *p, uint64_t value)
{
	value = htole64(value);
	memcpy(p, &value, sizeof(value));
}

#define CRC_START 0xFFFFFFFFu

/* CRC-32C in pieces: start with CRC_START, the digest is ~crc. */
static inline uint32_t crc_more(uint32_t crc, const void *data, size_t len)
{
	return crc32_iscsi((unsigned char *)(uintptr_t)data, (int)len, crc);
}

static inline uint32_t crc32c(const void *data, size_t len)
{
	return ~crc_more(CRC_START, data, len);
}

static inline uint32_t align_up(uint32_t value, uint32_t to)
{
	return (value + to - 1) / to * to;
}

static inline void pdu_common(uint8_t *p, uint8_t type, uint8_t flags, uint8_t hlen, uint8_t pdo, uint32_t plen)
{
	p[0] = type;
	p[1] = flags;
	p[2] = hlen;
	p[3] = pdo;
	put32(p + 4, plen);
}

/* SGL descriptors: data in the capsule, and data by the transport (Fabrics 2.3.1). */
static inline void sgl_set(uint8_t sqe[64], uint32_t len, int in_capsule)
{
	put64(sqe + 24, 0);
	put32(sqe + 32, len);
	put32(sqe + 36, (uint32_t)(in_capsule ? 0x01 : 0x5A) << 24);
}

/* A CQE's status without phase and retry bits: SCT << 8 | SC. */
static inline uint16_t cqe_status(const uint8_t cqe[16])
{
	uint16_t sf = get16(cqe + 14);
	return (uint16_t)((sf >> 9 & 7) << 8 | (sf >> 1 & 0xFF));
}
