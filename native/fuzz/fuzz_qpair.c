/* SPDX-License-Identifier: BSD-3-Clause
 *
 * fuzz_qpair.c: whatever a host sends on an I/O queue. The input is a list of acts: raw bytes, capsules and H2CData that
 * are framed rightly (digests too) but say anything, aborts, changes of the view. The staging memory is poisoned with A5h
 * and no data of the host holds that byte, so that none may ever come out in a C2HData; at the end all memory, pins,
 * locks and users must have been given back (rig_close). Some inputs have a pool of peer memory too, with A5h of another
 * host in it; there drives take their time or fail, others take its memory, and it may be lost.
 */
#include <errno.h>
#include <stdlib.h>

#include "pool_priv.h"
#include "queue_rig.h"

#define POISON 0xA5

struct input {
	const uint8_t *p;
	size_t left;
};

static size_t seen;       /* of rig.out */
static uint8_t r2t[4][8]; /* CCCID, TTAG, R2TO of the last ones */
static uint32_t r2t_len[4];
static unsigned r2ts;

static uint8_t take8(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->p++;
}

static uint32_t take32(struct input *in)
{
	uint32_t v = take8(in);

	v |= (uint32_t)take8(in) << 8;
	v |= (uint32_t)take8(in) << 16;
	return v | (uint32_t)take8(in) << 24;
}

/* The target's PDUs must be whole and sound; R2Ts are remembered. */
static void look(void)
{
	if (rig.out_len < seen)
		seen = 0;
	while (rig.out_len - seen >= CH_LEN) {
		const uint8_t *p = rig.out + seen;
		uint32_t plen = get32(p + 4);

		if (plen < CH_LEN || plen > 2u << 20)
			abort();
		if (rig.out_len - seen < plen)
			break;
		if (p[0] == PDU_R2T) {
			memcpy(r2t[r2ts % 4], p + 8, 8);
			r2t_len[r2ts++ % 4] = get32(p + 16);
		} else if (p[0] == PDU_C2H_DATA) {
			if (memchr(p + p[3], POISON, get32(p + 16)))
				abort(); /* memory that nobody filled */
		} else if (p[0] != PDU_CAPSULE_RESP && p[0] != PDU_C2H_TERM) {
			abort();
		}
		seen += plen;
	}
	if (seen == rig.out_len)
		seen = rig.out_len = 0;
}

static uint8_t payload[256u << 10];

static void fill(struct input *in, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++) {
		uint8_t byte = i < 64 ? take8(in) : (uint8_t)(i * 7);

		payload[i] = byte == POISON ? 0 : byte;
	}
}

static void capsule(struct input *in, uint8_t *pdu)
{
	static const uint8_t opcodes[] = { OPC_READ, OPC_WRITE, OPC_FLUSH, OPC_COMPARE, OPC_WRITE_ZEROES, OPC_DSM, OPC_VERIFY,
					   OPC_COPY, OPC_FABRICS, 0x0D };
	uint8_t a = take8(in), b = take8(in), fuse = take8(in), sgl = take8(in);
	uint16_t nlb0 = take8(in);
	uint64_t slba = take8(in);
	uint8_t opc = a < 240 ? opcodes[a % sizeof(opcodes)] : take8(in);
	uint32_t icd = 0, len = (nlb0 + 1u) * 512;
	uint8_t sqe[64];

	if (opc == OPC_DSM)
		len = (nlb0 % 16 + 1) * 16;
	if (opc == OPC_COPY)
		len = (nlb0 % 8 + 1) * (b & 0x40 ? 40 : 32);
	if (sgl & 1 && len <= 8192 && opc != OPC_READ && opc != OPC_WRITE_ZEROES && opc != OPC_VERIFY && opc != OPC_FLUSH)
		icd = len;
	if (sgl & 0x20)
		icd = take32(in) % 9000;
	rig_sqe(sqe, opc, b & 7, sgl & 0x40 ? take32(in) : 1 + (b >> 3) % (rig.pool ? 6u : 4u), slba, nlb0, icd ? icd : len, icd ? 0x01 : 0x5A);
	if (opc == OPC_FLUSH || opc == OPC_WRITE_ZEROES || opc == OPC_VERIFY)
		put32(sqe + 32, 0);
	if (opc == OPC_DSM) {
		put32(sqe + 40, nlb0 % 16);
		put32(sqe + 44, 4);
	}
	if (opc == OPC_COPY)
		put32(sqe + 48, (uint32_t)(nlb0 % 8) | (b & 0x40 ? 1u : 0) << 8 | (b & 0x80 ? 2u : 0) << 8);
	if (fuse < 96)
		sqe[1] |= fuse & 3;
	if (sgl & 0x80)
		sqe[take8(in) % 64] ^= take8(in);
	fill(in, icd);
	rig_feed(pdu, rig_capsule(pdu, sqe, payload, icd));
}

static void h2c(struct input *in, uint8_t *pdu)
{
	uint8_t which = take8(in), how = take8(in);
	const uint8_t *r = r2t[which % 4];
	uint32_t len = r2t_len[which % 4], at = get32(r + 4);

	if (how & 1)
		len = take32(in) % (128 * 1024 + 8);
	if (how & 2)
		at = take32(in);
	if (len > sizeof(payload))
		len = sizeof(payload);
	fill(in, len);
	rig_feed(pdu, rig_h2c(pdu, (uint16_t)(get16(r) + (how & 4 ? 1 : 0)), (uint16_t)(get16(r + 2) + (how & 8 ? 1 : 0)), at,
			      payload, len, !(how & 16)));
}

/* -- the pool */

static struct pool_buf *hogged[8];
static unsigned hogs;

static void unhog(void)
{
	while (hogs)
		pool_put(hogged[--hogs]);
}

/* Somebody else takes memory of it, and leaves something there. */
static void hog(uint32_t granules)
{
	struct pool_want want = { .bytes = granules * POOL_GRANULE, .owner = 99 };
	struct pool_buf *buf = hogs < sizeof(hogged) / sizeof(hogged[0]) ? pool_get(rig.pool, &want) : NULL;

	for (unsigned i = 0; buf && i < buf->n; i++)
		memset(buf->iov[i].iov_base, POISON, buf->iov[i].iov_len);
	if (buf)
		hogged[hogs++] = buf;
}

static void drives(uint8_t how)
{
	static const int results[] = { 0, 0, 0, 0, -EIO, -EFAULT, -EREMOTEIO, -ENOSPC };

	rig.hold = how & 0x80;
	for (unsigned n = how >> 4 & 7; n && rig.n_held; n--)
		rig_drive(results[how & 7]);
}

static void pool_act(struct input *in)
{
	uint8_t how = take8(in);

	switch (how % 8) {
	case 0:
	case 1:
	case 2:
		drives(take8(in));
		break;
	case 3:
		hog(1 + take8(in) % 16);
		break;
	case 4:
		unhog();
		break;
	case 5:
		bdev_error_inject(rig.bdevs[4], "all", "corrupt_data", 1 + how / 64, how * 64u, 0);
		break;
	case 6:
		rig.owner = 1 + how / 128;
		break;
	default:
		if (how & 0x40)
			pool_lose(rig.pool, "fuzz");
		else if (how & 0x20)
			rig.send_error = -EFAULT;
		else if (how & 0x10)
			memset(rig.pool->base, 0, 8);
	}
}

static void act(struct input *in, uint8_t *pdu)
{
	switch (take8(in) % 8) {
	case 0: {
		size_t len = take8(in);

		if (len > in->left)
			len = in->left;
		rig_feed(in->p, len);
		in->p += len;
		in->left -= len;
		break;
	}
	case 1: {
		struct request *rq = rig.q->ending == END_NONE ? io_find(rig.q, take8(in) & 7) : NULL;

		if (rq)
			io_cancel(rq, ST_ABORT_REQUESTED);
		break;
	}
	case 2:
		rig_view(take8(in), take8(in) & 8 ? 3 : 1);
		break;
	case 3:
	case 4:
		h2c(in, pdu);
		break;
	case 5:
		bdev_error_inject(rig.bdevs[2], "all", take8(in) & 1 ? "pending" : "failure", 1, 0, 0);
		capsule(in, pdu);
		break;
	case 7:
		if (rig.pool) {
			pool_act(in);
			break;
		}
		/* fall through */
	default:
		capsule(in, pdu);
	}
	rig_turn();
	look();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t pdu[512u << 10];
	struct input in = { data, size };
	uint8_t a = take8(&in), b = take8(&in);
	struct rig_options options = { .hdgst = a & 1,
				       .ddgst = a & 2,
				       .flow_control = a & 4,
				       .c2h_success = a & 8,
				       .hpda = a & 16 ? 7 : 0,
				       .cpda = a & 32 ? 3 : 0,
				       .maxr2t = a & 64 ? 3 : 0,
				       .sqsize = a & 128 ? 3 : 15,
				       .peer_bytes = b & 1 ? (b & 2 ? 9u : 65u) * POOL_GRANULE : 0,
				       .strict = b & 4 };

	seen = 0;
	r2ts = 0;
	memset(r2t, 0, sizeof(r2t));
	memset(r2t_len, 0, sizeof(r2t_len));
	rig_open(&options);
	rig.send_most = b ? 16u * b : 0;
	if (rig.pool) {
		hog(rig.pool->granules);
		unhog();
	}
	while (in.left && rig.q->ending == END_NONE)
		act(&in, pdu);
	unhog();
	rig_close();
	return 0;
}
