/* SPDX-License-Identifier: BSD-3-Clause
 *
 * fuzz_queue.c: what a target may send on an I/O queue. The first byte chooses the options, the second the size of the
 * pieces in which the rest arrives. What the queue sends is read to its last byte, so that ASan sees a wrong length.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "queue.h"

#define BS 8192u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct run bench;
static bool failed;
static volatile uint8_t sink;

int bench_fail(int status, const char *format, ...)
{
	char text[512];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args); /* its arguments are looked at */
	va_end(args);
	failed = true;
	return -1;
}

bool bench_failed(void)
{
	return failed;
}

void conn_close(struct conn *conn)
{
}

const char *status_text(uint16_t status)
{
	return "";
}

ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
	size_t total = 0;
	for (size_t i = 0; i < msg->msg_iovlen; i++) {
		const uint8_t *base = msg->msg_iov[i].iov_base;
		for (size_t at = 0; at < msg->msg_iov[i].iov_len; at += 16)
			sink ^= base[at];
		if (msg->msg_iov[i].iov_len)
			sink ^= base[msg->msg_iov[i].iov_len - 1];
		total += msg->msg_iov[i].iov_len;
	}
	return total > 1000 && total % 3 == 0 ? (ssize_t)total / 2 : (ssize_t)total;
}

static void set_up(uint8_t choice)
{
	struct options *opt = &bench.opt;
	*opt = (struct options){.depth = 4, .queues = 1, .bs = BS, .random = true, .seed = 1, .timeout_ns = NSEC};
	opt->read_percent = (choice & 3) == 0 ? 100 : (choice & 3) == 1 ? 0 : 50;
	opt->verify = choice & 4 && opt->read_percent < 100;
	opt->hdgst = choice & 8;
	opt->ddgst = choice & 16;
	opt->maxr2t = choice & 32 ? 2 : 0;
	bench.target = (struct target){.nsid = 1, .lba_size = 512, .blocks = 4096, .icd_max = choice & 64 ? BS : 0};
	bench.unit_blocks = BS / 512;
	bench.units = 4096 / bench.unit_blocks;
	bench.end_ns = choice & 128 ? 50 : UINT64_MAX;
	bench.measure_ns = 0;
	failed = false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct stats stats;
	static uint8_t payload[BS];
	struct queue *queue;
	if (size < 2)
		return 0;
	set_up(data[0]);
	bench.payload = payload;
	queue = malloc(sizeof(*queue));
	if (queue == NULL || queue_init(queue, 1, 0, &stats))
		abort();
	queue->conn.params = (struct params){
		.hdgst = bench.opt.hdgst, .ddgst = bench.opt.ddgst, .data_align = 4, .maxh2cdata = 4096,
		.maxr2t = bench.opt.maxr2t + 1,
	};
	uint64_t now = 1;
	int rc = queue_submit(queue, now);
	size_t piece = data[1] + 1u;
	for (size_t at = 2; at < size && rc == 0; at += piece, now++) {
		size_t len = size - at < piece ? size - at : piece;
		uint8_t *copy = malloc(len); /* so that reading beyond it shows */
		if (copy == NULL)
			abort();
		memcpy(copy, data + at, len);
		rc = queue_receive(queue, copy, len, now) || queue_submit(queue, now) ? -1 : 0;
		free(copy);
		if (queue->inflight > queue->depth || queue->job_tail - queue->job_head > queue->job_mask + 1)
			abort();
	}
	queue_free(queue);
	free(queue);
	return 0;
}
