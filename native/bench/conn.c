/* SPDX-License-Identifier: BSD-3-Clause
 *
 * conn.c: one connection used with blocking calls, here over NVMe/TCP, one command at a time: the admin queue for life, an I/O
 * queue up to its Connect.
 */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "rdma.h"

#define PDO_PLEN_MAX (1u << 20) /* of one PDU on the admin queue */

static const struct {
	uint16_t status;
	const char *name;
} STATUS_NAMES[] = {
	{0x001, "Invalid Command Opcode"},
	{0x002, "Invalid Field in Command"},
	{0x004, "Data Transfer Error"},
	{0x006, "Internal Error"},
	{0x007, "Command Abort Requested"},
	{0x00B, "Invalid Namespace or Format"},
	{0x00C, "Command Sequence Error"},
	{0x00F, "Data SGL Length Invalid"},
	{0x011, "SGL Descriptor Type Invalid"},
	{0x016, "SGL Offset Invalid"},
	{0x020, "Namespace is Write Protected"},
	{0x022, "Transient Transport Error"},
	{0x080, "LBA Out of Range"},
	{0x081, "Capacity Exceeded"},
	{0x082, "Namespace Not Ready"},
	{0x180, "Connect Incompatible Format"},
	{0x181, "Connect Controller Busy"},
	{0x182, "Connect Invalid Parameters, or Attempted Write to Read Only Range"},
	{0x183, "Connect Restart Discovery"},
	{0x184, "Connect Invalid Host"},
	{0x191, "Authentication Required"},
	{0x280, "Write Fault"},
	{0x281, "Unrecovered Read Error"},
	{0x301, "Asymmetric Access Persistent Loss"},
	{0x302, "Asymmetric Access Inaccessible"},
	{0x303, "Asymmetric Access Transition"},
};

const char *status_text(uint16_t status)
{
	for (size_t i = 0; i < sizeof(STATUS_NAMES) / sizeof(STATUS_NAMES[0]); i++)
		if (STATUS_NAMES[i].status == status)
			return STATUS_NAMES[i].name;
	return "a status without a name here";
}

static int send_all(const struct conn *conn, const void *data, size_t len)
{
	for (const uint8_t *at = data; len > 0;) {
		ssize_t sent = send(conn->fd, at, len, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return bench_fail(EXIT_RUN_FAILED, "send: %m");
		at += sent;
		len -= (size_t)sent;
	}
	return 0;
}

static int recv_all(const struct conn *conn, void *data, size_t len, const char *what)
{
	for (uint8_t *at = data; len > 0;) {
		ssize_t got = recv(conn->fd, at, len, 0);
		if (got < 0 && errno == EINTR && !bench.interrupted)
			continue;
		if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return bench_fail(EXIT_RUN_FAILED, "%s: the target did not answer in time", what);
		if (got < 0)
			return bench_fail(EXIT_RUN_FAILED, "%s: receive: %m", what);
		if (got == 0)
			return bench_fail(EXIT_RUN_FAILED, "%s: the target closed the connection", what);
		at += got;
		len -= (size_t)got;
	}
	return 0;
}

static int tcp_connect(void)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	struct addrinfo *list = NULL;
	int rc = getaddrinfo(bench.opt.traddr, bench.opt.trsvcid, &hints, &list);
	if (rc != 0)
		return bench_fail(EXIT_RUN_FAILED, "%s: %s", bench.opt.traddr, gai_strerror(rc));
	struct timeval limit = {
		.tv_sec = (time_t)(bench.opt.timeout_ns / NSEC),
		.tv_usec = (suseconds_t)(bench.opt.timeout_ns % NSEC / 1000),
	};
	int fd = -1, on = 1;
	for (struct addrinfo *at = list; at != NULL && fd < 0; at = at->ai_next) {
		fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol);
		if (fd < 0)
			continue;
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)); /* also bounds connect(2) */
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		if (bench.opt.congestion != NULL &&
		    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, bench.opt.congestion,
			       (socklen_t)strlen(bench.opt.congestion)) < 0) {
			freeaddrinfo(list);
			close(fd);
			return bench_fail(EXIT_RUN_FAILED, "congestion control %s: %m", bench.opt.congestion);
		}
		if (connect(fd, at->ai_addr, at->ai_addrlen) < 0) {
			rc = errno;
			close(fd);
			fd = -1;
			errno = rc;
		}
	}
	freeaddrinfo(list);
	if (fd < 0)
		return bench_fail(EXIT_RUN_FAILED, "connect to %s:%s: %m", bench.opt.traddr, bench.opt.trsvcid);
	return fd;
}

static int initialize(struct conn *conn)
{
	uint8_t req[PDU_IC_LEN] = {0}, resp[PDU_IC_LEN];
	pdu_common(req, PDU_ICREQ, 0, PDU_IC_LEN, 0, PDU_IC_LEN);
	req[10] = bench.opt.hpda;
	req[11] = (uint8_t)(bench.opt.hdgst | bench.opt.ddgst << 1);
	put32(req + 12, bench.opt.maxr2t);
	if (send_all(conn, req, sizeof(req)) || recv_all(conn, resp, PDU_COMMON, "ICReq"))
		return -1;
	if (resp[0] != PDU_ICRESP || resp[2] != PDU_IC_LEN || get32(resp + 4) != PDU_IC_LEN)
		return bench_fail(EXIT_RUN_FAILED, "ICReq was answered by PDU type %#x, length %u", resp[0],
				  get32(resp + 4));
	if (recv_all(conn, resp + PDU_COMMON, PDU_IC_LEN - PDU_COMMON, "ICReq"))
		return -1;
	struct params *params = &conn->params;
	params->hdgst = resp[11] & 1;
	params->ddgst = resp[11] & 2;
	params->data_align = (resp[10] + 1u) * 4;
	params->maxh2cdata = get32(resp + 12);
	params->maxr2t = bench.opt.maxr2t + 1;
	if (get16(resp + 8) != 0 || resp[10] > 31 || params->maxh2cdata < 4096 || params->maxh2cdata % 4)
		return bench_fail(EXIT_RUN_FAILED, "ICResp out of range: PFV %u, CPDA %u, MAXH2CDATA %u",
				  get16(resp + 8), resp[10], params->maxh2cdata);
	if (params->hdgst != bench.opt.hdgst || params->ddgst != bench.opt.ddgst)
		return bench_fail(EXIT_RUN_FAILED, "the target granted digests %#x, asked were %#x", resp[11], req[11]);
	return 0;
}

int conn_open(struct conn *conn, uint16_t qid, uint16_t sqsize)
{
	if (bench.opt.rdma)
		return rdma_open(conn, qid, sqsize);
	*conn = (struct conn){.fd = tcp_connect()};
	if (conn->fd < 0)
		return -1;
	if (initialize(conn) == 0)
		return 0;
	conn_close(conn);
	return -1;
}

void conn_close(struct conn *conn)
{
	if (conn->rdma != NULL) {
		rdma_close(conn);
		return;
	}
	if (conn->fd >= 0)
		close(conn->fd);
	conn->fd = -1;
}

static int send_capsule(struct conn *conn, uint8_t sqe[64], const void *out, uint32_t out_len)
{
	uint8_t pdu[PDU_PDO_MAX + 1024 + 4] = {0};
	const struct params *params = &conn->params;
	uint32_t head = PDU_CMD_HLEN + (params->hdgst ? 4 : 0), at = head, pdo = 0;
	uint8_t flags = params->hdgst ? PDU_HDGSTF : 0;
	if (out_len > 0) {
		pdo = at = align_up(head, params->data_align);
		memcpy(pdu + at, out, out_len);
		at += out_len;
		if (params->ddgst) {
			flags |= PDU_DDGSTF;
			put32(pdu + at, crc32c(out, out_len));
			at += 4;
		}
	}
	pdu_common(pdu, PDU_CAPSULE_CMD, flags, PDU_CMD_HLEN, (uint8_t)pdo, at);
	memcpy(pdu + PDU_COMMON, sqe, 64);
	if (params->hdgst)
		put32(pdu + PDU_CMD_HLEN, crc32c(pdu, PDU_CMD_HLEN));
	return send_all(conn, pdu, at);
}

/* Reads a PDU's header, its digest and padding; checks the common header against its length. */
static int recv_header(const struct conn *conn, uint8_t head[PDU_PDO_MAX], uint32_t *data_len, const char *what)
{
	if (recv_all(conn, head, PDU_COMMON, what))
		return -1;
	uint32_t hlen = head[2], plen = get32(head + 4), digest = conn->params.hdgst ? 4 : 0;
	if (head[0] == PDU_C2H_TERM) {
		if (hlen != PDU_DATA_HLEN || recv_all(conn, head + PDU_COMMON, PDU_DATA_HLEN - PDU_COMMON, what))
			return -1;
		return bench_fail(EXIT_RUN_FAILED, "%s: the target ended the connection: C2HTermReq, FES %u, FEI %u",
				  what, get16(head + 8), get32(head + 10));
	}
	uint32_t start = head[0] == PDU_C2H_DATA ? head[3] : hlen + digest;
	uint32_t trailer = head[0] == PDU_C2H_DATA && conn->params.ddgst ? 4 : 0;
	if ((head[0] != PDU_CAPSULE_RESP && head[0] != PDU_C2H_DATA) || hlen != PDU_DATA_HLEN || plen > PDO_PLEN_MAX ||
	    start < hlen + digest || start > PDU_PDO_MAX || plen < start + trailer)
		return bench_fail(EXIT_RUN_FAILED, "%s: PDU type %#x, HLEN %u, PDO %u, PLEN %u", what, head[0], hlen,
				  head[3], plen);
	if (recv_all(conn, head + PDU_COMMON, start - PDU_COMMON, what))
		return -1;
	if (digest && get32(head + hlen) != crc32c(head, hlen))
		return bench_fail(EXIT_RUN_FAILED, "%s: header digest error", what);
	*data_len = plen - start - trailer;
	return 0;
}

static int tcp_command(struct conn *conn, uint8_t sqe[64], const void *out, uint32_t out_len, void *in, uint32_t in_len,
		       uint8_t cqe[16], const char *what)
{
	uint8_t head[PDU_PDO_MAX], digest[4];
	uint16_t cid = conn->next_cid++;
	uint32_t data_len = 0, have = 0;
	put16(sqe + 2, cid);
	sqe[1] = 0x40; /* PSDT: SGL */
	sgl_set(sqe, out_len > 0 ? out_len : in_len, out_len > 0);
	if (send_capsule(conn, sqe, out, out_len))
		return -1;
	for (;;) {
		if (recv_header(conn, head, &data_len, what))
			return -1;
		if (head[0] == PDU_CAPSULE_RESP)
			break;
		if (get16(head + 8) != cid || get32(head + 12) != have || get32(head + 16) != data_len ||
		    data_len > in_len - have)
			return bench_fail(EXIT_RUN_FAILED, "%s: C2HData for CID %u, %u bytes at %u of %u", what,
					  get16(head + 8), data_len, get32(head + 12), in_len);
		if (recv_all(conn, (uint8_t *)in + have, data_len, what))
			return -1;
		if (conn->params.ddgst && recv_all(conn, digest, 4, what))
			return -1;
		if (conn->params.ddgst && get32(digest) != crc32c((uint8_t *)in + have, data_len))
			return bench_fail(EXIT_RUN_FAILED, "%s: data digest error", what);
		have += data_len;
	}
	memcpy(cqe, head + PDU_COMMON, 16);
	if (get16(cqe + 12) != cid)
		return bench_fail(EXIT_RUN_FAILED, "%s: response for CID %u, sent was %u", what, get16(cqe + 12), cid);
	if (cqe_status(cqe) == 0 && have != in_len)
		return bench_fail(EXIT_RUN_FAILED, "%s: %u of %u bytes came", what, have, in_len);
	return 0;
}

int conn_command(struct conn *conn, uint8_t sqe[64], const void *out, uint32_t out_len, void *in, uint32_t in_len,
		 uint8_t cqe[16], const char *what)
{
	if ((conn->rdma != NULL ? rdma_command : tcp_command)(conn, sqe, out, out_len, in, in_len, cqe, what))
		return -1;
	uint16_t status = cqe_status(cqe);
	if (status != 0)
		return bench_fail(EXIT_RUN_FAILED, "%s: status %#05x (%s), dw0 %#x", what, status, status_text(status),
				  get32(cqe));
	return 0;
}
