/* SPDX-License-Identifier: BSD-3-Clause
 *
 * host.c: the admin queue: Connect, enable, Identify, number of queues, Keep Alive, shutdown.
 */
#include <poll.h>
#include <stdio.h>

#include "bench.h"

enum { OPC_IDENTIFY = 0x06, OPC_SET_FEATURES = 0x09, OPC_KEEP_ALIVE = 0x18, OPC_FABRICS = 0x7F };
enum { FCTYPE_PROPERTY_SET = 0x00, FCTYPE_CONNECT = 0x01, FCTYPE_PROPERTY_GET = 0x04 };
enum { PROP_CAP = 0x00, PROP_CC = 0x14, PROP_CSTS = 0x1C };
enum { CNS_NS = 0x00, CNS_CTRL = 0x01, CNS_ACTIVE_NS = 0x02 };

#define CC_ENABLE 0x00460001u   /* IOCQES 4, IOSQES 6, EN */
#define CC_SHUTDOWN 0x00464001u /* with SHN normal */
#define CONNECT_DATA_LEN 1024u
#define CATTR_DISABLE_SQFLOW 4u
#define ADMIN_SQSIZE 31u
#define IDENTIFY_LEN 4096u
#define CNTLID_DYNAMIC 0xFFFFu

static int fabrics_connect(struct conn *conn, uint16_t qid, uint16_t sqsize, uint16_t cntlid, uint8_t cqe[16])
{
	uint8_t sqe[64] = {OPC_FABRICS, 0, 0, 0, FCTYPE_CONNECT}, data[CONNECT_DATA_LEN] = {0};
	put16(sqe + 42, qid);
	put16(sqe + 44, sqsize);
	sqe[46] = bench.opt.disable_sqflow && qid ? CATTR_DISABLE_SQFLOW : 0;
	put32(sqe + 48, qid ? 0 : bench.opt.kato_ms);
	memcpy(data, bench.opt.hostid, 16);
	put16(data + 16, cntlid);
	snprintf((char *)data + 256, 256, "%s", bench.opt.subnqn);
	snprintf((char *)data + 512, 256, "%s", bench.opt.hostnqn);
	return conn_command(conn, sqe, data, sizeof(data), NULL, 0, cqe, qid ? "Connect of an I/O queue" : "Connect");
}

static int property_get(uint32_t offset, int eight, uint64_t *value)
{
	uint8_t sqe[64] = {OPC_FABRICS, 0, 0, 0, FCTYPE_PROPERTY_GET}, cqe[16];
	sqe[40] = (uint8_t)eight;
	put32(sqe + 44, offset);
	if (conn_command(&bench.admin, sqe, NULL, 0, NULL, 0, cqe, "Property Get"))
		return -1;
	*value = eight ? get64(cqe) : get32(cqe);
	return 0;
}

static int property_set(uint32_t offset, uint32_t value)
{
	uint8_t sqe[64] = {OPC_FABRICS, 0, 0, 0, FCTYPE_PROPERTY_SET}, cqe[16];
	put32(sqe + 44, offset);
	put64(sqe + 48, value);
	return conn_command(&bench.admin, sqe, NULL, 0, NULL, 0, cqe, "Property Set");
}

/* Waits until the masked bits of CSTS have that value. */
static int wait_csts(uint32_t mask, uint32_t value, const char *what)
{
	for (uint64_t end = now_ns() + bench.opt.timeout_ns;;) {
		uint64_t csts;
		if (property_get(PROP_CSTS, 0, &csts))
			return -1;
		if ((csts & mask) == value)
			return 0;
		if (csts & 2)
			return bench_fail(EXIT_RUN_FAILED, "%s: CSTS.CFS is set", what);
		if (now_ns() > end)
			return bench_fail(EXIT_RUN_FAILED, "%s: CSTS stays %#x", what, (unsigned)csts);
		poll(NULL, 0, 1);
	}
}

static int identify(uint8_t cns, uint32_t nsid, uint8_t data[IDENTIFY_LEN], const char *what)
{
	uint8_t sqe[64] = {OPC_IDENTIFY}, cqe[16];
	put32(sqe + 4, nsid);
	sqe[40] = cns;
	return conn_command(&bench.admin, sqe, NULL, 0, data, IDENTIFY_LEN, cqe, what);
}

/* ASCII of fixed width, padded with blanks. */
static void copy_text(char *to, const uint8_t *from, size_t len)
{
	for (size_t i = 0; i < len; i++)
		to[i] = from[i] >= 0x20 && from[i] < 0x7F ? (char)from[i] : '?';
	while (len > 0 && to[len - 1] == ' ')
		len--;
	to[len] = '\0';
}

static int identify_controller(void)
{
	uint8_t data[IDENTIFY_LEN];
	struct target *target = &bench.target;
	if (identify(CNS_CTRL, 0, data, "Identify Controller"))
		return -1;
	copy_text(target->serial, data + 4, 20);
	copy_text(target->model, data + 24, 40);
	copy_text(target->firmware, data + 64, 8);
	target->transfer_max = data[77] && data[77] < 20 ? 4096ull << data[77] : 0;
	uint64_t capsule = (uint64_t)get32(data + 1792) * 16, offset = (uint64_t)get16(data + 1800) * 16;
	bool sgl_offset = data[538] & 0x10; /* SGLS bit 20 */
	target->icd_max = 0;
	if (!bench.opt.no_icd && sgl_offset && offset == 0 && capsule > 64)
		target->icd_max = capsule - 64 > BS_MAX ? BS_MAX : (uint32_t)(capsule - 64);
	return 0;
}

static int identify_namespace(void)
{
	uint8_t data[IDENTIFY_LEN];
	struct target *target = &bench.target;
	target->nsid = bench.opt.nsid;
	if (target->nsid == 0) {
		if (identify(CNS_ACTIVE_NS, 0, data, "Identify active namespaces"))
			return -1;
		target->nsid = get32(data);
		if (target->nsid == 0)
			return bench_fail(EXIT_RUN_FAILED, "the controller has no active namespace");
	}
	if (identify(CNS_NS, target->nsid, data, "Identify Namespace"))
		return -1;
	target->blocks = get64(data);
	const uint8_t *format = data + 128 + 4 * ((data[26] & 0xFu) | (data[26] >> 5 & 3u) << 4);
	if (target->blocks == 0)
		return bench_fail(EXIT_RUN_FAILED, "namespace %u is not active", target->nsid);
	if (get16(format) != 0)
		return bench_fail(EXIT_RUN_FAILED, "namespace %u has metadata", target->nsid);
	if (format[2] < 9 || format[2] > 16)
		return bench_fail(EXIT_RUN_FAILED, "namespace %u: LBADS %u", target->nsid, format[2]);
	target->lba_size = 1u << format[2];
	return 0;
}

static int number_of_queues(void)
{
	uint8_t sqe[64] = {OPC_SET_FEATURES}, cqe[16];
	uint32_t asked = bench.opt.queues - 1;
	put32(sqe + 40, 0x07);
	put32(sqe + 44, asked << 16 | asked);
	if (conn_command(&bench.admin, sqe, NULL, 0, NULL, 0, cqe, "Set Features, number of queues"))
		return -1;
	uint32_t granted = get16(cqe) < get16(cqe + 2) ? get16(cqe) : get16(cqe + 2);
	if (granted < asked)
		return bench_fail(EXIT_RUN_FAILED, "the target grants %u I/O queues, asked were %u", granted + 1,
				  asked + 1);
	return 0;
}

int host_start(void)
{
	uint8_t cqe[16];
	uint64_t cap;
	if (conn_open(&bench.admin, 0, ADMIN_SQSIZE) || fabrics_connect(&bench.admin, 0, ADMIN_SQSIZE, CNTLID_DYNAMIC, cqe))
		return -1;
	bench.target.cntlid = get16(cqe);
	if (get32(cqe) >> 16)
		return bench_fail(EXIT_RUN_FAILED, "the target asks for authentication, which this tool cannot do");
	if (property_get(PROP_CAP, 1, &cap) || property_set(PROP_CC, CC_ENABLE) ||
	    wait_csts(1, 1, "enabling the controller"))
		return -1;
	bench.target.entries_max = (uint32_t)(cap & 0xFFFF) + 1;
	return identify_controller() || identify_namespace() || number_of_queues() ? -1 : 0;
}

int host_connect_queue(struct conn *conn, uint16_t qid, uint16_t sqsize)
{
	uint8_t cqe[16];
	if (conn_open(conn, qid, sqsize))
		return -1;
	if (fabrics_connect(conn, qid, sqsize, bench.target.cntlid, cqe) == 0)
		return 0;
	conn_close(conn);
	return -1;
}

int host_keep_alive(void)
{
	uint8_t sqe[64] = {OPC_KEEP_ALIVE}, cqe[16];
	return conn_command(&bench.admin, sqe, NULL, 0, NULL, 0, cqe, "Keep Alive");
}

void host_stop(void)
{
	/* After a failure the connection may be in the middle of anything: it is just closed. */
	if (bench.admin.fd >= 0 && !bench_failed() && property_set(PROP_CC, CC_SHUTDOWN) == 0)
		wait_csts(0xC, 0x8, "shutting the controller down");
	conn_close(&bench.admin);
}
