/* SPDX-License-Identifier: BSD-3-Clause
 *
 * queue_host.h: a host of the rig's queue, for tests.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "queue_rig.h"

static uint8_t pdu[512u << 10], data[256u << 10];

static const struct rig_options plain = { .flow_control = true };

static inline int setup(void **state)
{
	rig_open(*state ? *state : &plain);
	return 0;
}

static inline int teardown(void **state)
{
	rig_close();
	return 0;
}

/* The answers in order; each call takes one PDU off what the queue has sent. */
static inline const uint8_t *next_pdu(uint8_t type)
{
	static uint8_t taken[300u << 10];
	uint32_t plen = get32(rig.out + 4);

	assert_true(rig.out_len >= CH_LEN && rig.out_len >= plen && plen <= sizeof(taken));
	assert_int_equal(rig.out[0], type);
	memcpy(taken, rig.out, plen);
	rig.out_len -= plen;
	memmove(rig.out, rig.out + plen, rig.out_len);
	return taken;
}

static inline uint16_t next_status(uint16_t cid)
{
	const uint8_t *p = next_pdu(PDU_CAPSULE_RESP);

	assert_int_equal(get16(p + 20), cid);
	return get16(p + 22) >> 1;
}

#define DNR 0x4000u

static inline void command(uint8_t opc, uint16_t cid, uint32_t nsid, uint64_t slba, uint16_t nlb0, uint32_t icd)
{
	uint8_t sqe[64];
	uint32_t len = (nlb0 + 1u) * 512;

	rig_sqe(sqe, opc, cid, nsid, slba, nlb0, icd ? icd : len, icd ? 0x01 : 0x5A);
	rig_feed(pdu, rig_capsule(pdu, sqe, data, icd));
}

static inline void no_data(uint8_t opc, uint16_t cid, uint32_t nsid, uint64_t slba, uint16_t nlb0)
{
	uint8_t sqe[64];

	rig_sqe(sqe, opc, cid, nsid, slba, nlb0, 0, 0x5A);
	rig_feed(pdu, rig_capsule(pdu, sqe, NULL, 0));
}

static inline void answer_r2t(bool last)
{
	const uint8_t *p = next_pdu(PDU_R2T);
	uint16_t cid = get16(p + 8), tag = get16(p + 10);
	uint32_t at = get32(p + 12), len = get32(p + 16);

	rig_feed(pdu, rig_h2c(pdu, cid, tag, at, data + at, len, last));
}

static inline void pattern(unsigned seed)
{
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 131 + seed + (i >> 9));
}
