/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rdma_host.c: a host on raw verbs that says whatever it is told to, for test_rdma.py. It reads orders from standard input,
 * one a line, and answers each with one line. `slot` is a number from 0 to 63: several connections at once.
 *
 *   connect SLOT PRIVHEX IRD ORD    "accepted HEX", "rejected REASON HEX" or "failed EVENT"; PRIVHEX may be "-"
 *   send SLOT SQEHEX ICDHEX         a capsule as it stands, of any length; ICDHEX may be "-"
 *   keyed SLOT SQEHEX LEN OFF XOR S its DPTR becomes a keyed descriptor of our memory with subtype S and the key XOR'ed
 *   answer SLOT MS                  "cqe HEX INVALIDATED", "closed" or "nothing"
 *   put OFF HEX / get OFF LEN       our memory
 *   at ADDRESS PORT                 where connections go from now on
 *   kill SLOT                       the QP goes to the error state, without a word to the target
 *   close SLOT                      an orderly disconnect; "closed"
 */
#include <arpa/inet.h>
#include <poll.h>
#include <rdma/rdma_cma.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SLOTS 64
#define DEPTH 160
#define CAPSULE_MAX (64 + 65536)
#define MEMORY (2u << 20)

struct slot {
	struct rdma_cm_id *id;
	struct ibv_cq *send_cq;
	struct ibv_cq *recv_cq;
	struct ibv_mr *memory;
	struct ibv_mr *capsules;
	struct ibv_mr *responses;
	unsigned char *out; /* DEPTH capsules */
	unsigned char *in;  /* DEPTH responses */
	unsigned next;
	int gone;
};

static struct slot slots[SLOTS];
static struct rdma_event_channel *events;
static unsigned char *memory;
static char address[64];
static char port[16];

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static size_t from_hex(const char *text, unsigned char *out, size_t max)
{
	size_t n = 0;
	unsigned value;
	if (strcmp(text, "-") == 0)
		return 0;
	for (; text[0] && text[1] && n < max; text += 2, n++) {
		if (sscanf(text, "%2x", &value) != 1)
			break;
		out[n] = (unsigned char)value;
	}
	return n;
}

static void print_hex(const unsigned char *bytes, size_t n)
{
	if (!n)
		fputs("-", stdout);
	for (size_t i = 0; i < n; i++)
		printf("%02x", bytes[i]);
}

static struct slot *slot_of(struct rdma_cm_id *id)
{
	for (int i = 0; i < SLOTS; i++)
		if (slots[i].id == id)
			return &slots[i];
	return NULL;
}

/* Waits for an event of `id`; events of others that tell of their end are noted. NULL: it did not come. */
static struct rdma_cm_event *event_of(struct rdma_cm_id *id, int ms)
{
	struct rdma_cm_event *event;
	struct pollfd poller = {.fd = events->fd, .events = POLLIN};
	while (poll(&poller, 1, ms) == 1 && rdma_get_cm_event(events, &event) == 0) {
		struct slot *slot = slot_of(event->id);
		if (slot && event->event == RDMA_CM_EVENT_DISCONNECTED)
			slot->gone = 1;
		if (id && event->id == id)
			return event;
		rdma_ack_cm_event(event);
		if (!id)
			return NULL;
	}
	return NULL;
}

static void forget(struct slot *slot)
{
	if (!slot->id)
		return;
	if (slot->id->qp)
		rdma_destroy_qp(slot->id);
	if (slot->memory)
		ibv_dereg_mr(slot->memory);
	if (slot->capsules)
		ibv_dereg_mr(slot->capsules);
	if (slot->responses)
		ibv_dereg_mr(slot->responses);
	if (slot->send_cq)
		ibv_destroy_cq(slot->send_cq);
	if (slot->recv_cq)
		ibv_destroy_cq(slot->recv_cq);
	free(slot->out);
	free(slot->in);
	rdma_destroy_id(slot->id);
	memset(slot, 0, sizeof(*slot));
}

static void post_recv(struct slot *slot, uint64_t index)
{
	struct ibv_sge sge = {(uintptr_t)slot->in + index * 64, 64, slot->responses->lkey};
	struct ibv_recv_wr wr = {.wr_id = index, .sg_list = &sge, .num_sge = 1}, *bad;
	if (ibv_post_recv(slot->id->qp, &wr, &bad))
		die("ibv_post_recv");
}

static void make_queue(struct slot *slot)
{
	struct rdma_cm_id *id = slot->id;
	struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC, .sq_sig_all = 1};
	int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
	slot->send_cq = ibv_create_cq(id->verbs, DEPTH, NULL, NULL, 0);
	slot->recv_cq = ibv_create_cq(id->verbs, DEPTH, NULL, NULL, 0);
	attr.send_cq = slot->send_cq;
	attr.recv_cq = slot->recv_cq;
	attr.cap = (struct ibv_qp_cap){.max_send_wr = DEPTH, .max_recv_wr = DEPTH, .max_send_sge = 1, .max_recv_sge = 1};
	if (!slot->send_cq || !slot->recv_cq || rdma_create_qp(id, NULL, &attr))
		die("rdma_create_qp");
	slot->out = malloc((size_t)DEPTH * CAPSULE_MAX);
	slot->in = calloc(DEPTH, 64);
	slot->memory = ibv_reg_mr(id->pd, memory, MEMORY, access);
	slot->capsules = ibv_reg_mr(id->pd, slot->out, (size_t)DEPTH * CAPSULE_MAX, 0);
	slot->responses = ibv_reg_mr(id->pd, slot->in, DEPTH * 64, IBV_ACCESS_LOCAL_WRITE);
	if (!slot->memory || !slot->capsules || !slot->responses)
		die("ibv_reg_mr");
	for (unsigned i = 0; i < DEPTH; i++)
		post_recv(slot, i);
}

static int step(struct slot *slot, enum rdma_cm_event_type wanted)
{
	struct rdma_cm_event *event = event_of(slot->id, 20000);
	if (!event) {
		printf("failed timeout\n");
		return -1;
	}
	enum rdma_cm_event_type got = event->event;
	if (got == RDMA_CM_EVENT_REJECTED) {
		printf("rejected %d ", event->status);
		print_hex(event->param.conn.private_data, event->param.conn.private_data_len);
		printf("\n");
	} else if (got == RDMA_CM_EVENT_ESTABLISHED && wanted == got) {
		printf("accepted ");
		print_hex(event->param.conn.private_data, event->param.conn.private_data_len);
		printf("\n");
	} else if (got != wanted) {
		printf("failed %s\n", rdma_event_str(got));
	}
	rdma_ack_cm_event(event);
	return got == wanted ? 0 : -1;
}

static void do_connect(struct slot *slot, const char *private, int ird, int ord)
{
	unsigned char bytes[196];
	struct rdma_addrinfo hints = {.ai_port_space = RDMA_PS_TCP}, *info;
	struct rdma_conn_param param = {.initiator_depth = (uint8_t)ird, .responder_resources = (uint8_t)ord,
					.retry_count = 7, .rnr_retry_count = 7};
	forget(slot);
	if (rdma_create_id(events, &slot->id, NULL, RDMA_PS_TCP))
		die("rdma_create_id");
	if (rdma_getaddrinfo(address, port, &hints, &info))
		die("rdma_getaddrinfo");
	if (rdma_resolve_addr(slot->id, NULL, info->ai_dst_addr, 5000))
		die("rdma_resolve_addr");
	rdma_freeaddrinfo(info);
	if (step(slot, RDMA_CM_EVENT_ADDR_RESOLVED))
		goto failed;
	if (rdma_resolve_route(slot->id, 5000))
		die("rdma_resolve_route");
	if (step(slot, RDMA_CM_EVENT_ROUTE_RESOLVED))
		goto failed;
	make_queue(slot);
	param.private_data_len = (uint8_t)from_hex(private, bytes, sizeof(bytes));
	param.private_data = bytes;
	if (rdma_connect(slot->id, &param)) {
		printf("failed rdma_connect\n");
		goto failed;
	}
	if (step(slot, RDMA_CM_EVENT_ESTABLISHED) == 0)
		return;
failed:
	forget(slot);
}

static void do_send(struct slot *slot, size_t length)
{
	struct ibv_sge sge = {(uintptr_t)slot->out + (size_t)(slot->next % DEPTH) * CAPSULE_MAX, (uint32_t)length,
			      slot->capsules->lkey};
	struct ibv_send_wr wr = {.opcode = IBV_WR_SEND, .sg_list = &sge, .num_sge = 1}, *bad;
	struct ibv_wc wc;
	while (ibv_poll_cq(slot->send_cq, 1, &wc) > 0)
		;
	slot->next++;
	printf(ibv_post_send(slot->id->qp, &wr, &bad) ? "failed\n" : "sent\n");
}

static unsigned char *capsule(struct slot *slot)
{
	return slot->out + (size_t)(slot->next % DEPTH) * CAPSULE_MAX;
}

static void do_keyed(struct slot *slot, unsigned length, unsigned offset, unsigned flip, unsigned subtype)
{
	unsigned char *dptr = capsule(slot) + 24;
	uint64_t at = (uintptr_t)memory + offset;
	uint32_t key = slot->memory->rkey ^ flip;
	memcpy(dptr, &at, 8);
	memcpy(dptr + 8, &length, 3);
	memcpy(dptr + 11, &key, 4);
	dptr[15] = (unsigned char)(0x40 | subtype);
	do_send(slot, 64);
}

static void do_answer(struct slot *slot, int ms)
{
	struct timespec pause = {0, 1000000}, start, now;
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		struct ibv_wc wc;
		if (slot->recv_cq && ibv_poll_cq(slot->recv_cq, 1, &wc) == 1) {
			if (wc.status != IBV_WC_SUCCESS) {
				printf("closed\n");
				return;
			}
			printf("cqe ");
			print_hex(slot->in + wc.wr_id * 64, wc.byte_len);
			printf(" %d\n", (wc.wc_flags & IBV_WC_WITH_INV) != 0);
			post_recv(slot, wc.wr_id);
			return;
		}
		event_of(NULL, 0);
		if (slot->gone) {
			printf("closed\n");
			return;
		}
		nanosleep(&pause, NULL);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < ms);
	printf("nothing\n");
}

static void obey(char *line)
{
	static char text[2][2 * CAPSULE_MAX + 2];
	unsigned index = 0, a = 0, b = 0, c = 0, d = 0;
	char verb[16] = "";
	int at = 0;
	sscanf(line, "%15s %n", verb, &at);
	line += at;
	if (strcmp(verb, "put") == 0 && sscanf(line, "%u %131140s", &a, text[0]) == 2 && a < MEMORY) {
		printf("put %zu\n", from_hex(text[0], memory + a, MEMORY - a));
		return;
	}
	if (strcmp(verb, "get") == 0 && sscanf(line, "%u %u", &a, &b) == 2 && a < MEMORY && b <= MEMORY - a) {
		print_hex(memory + a, b);
		printf("\n");
		return;
	}
	if (strcmp(verb, "at") == 0 && sscanf(line, "%63s %15s", address, port) == 2) {
		printf("at\n");
		return;
	}
	if (sscanf(line, "%u %n", &index, &at) != 1 || index >= SLOTS)
		die("slot");
	struct slot *slot = &slots[index];
	line += at;
	if (strcmp(verb, "connect") == 0 && sscanf(line, "%1000s %u %u", text[0], &a, &b) == 3) {
		do_connect(slot, text[0], (int)a, (int)b);
	} else if (!slot->id) {
		printf("closed\n");
	} else if (strcmp(verb, "send") == 0 && sscanf(line, "%130s %131140s", text[0], text[1]) == 2) {
		size_t length = from_hex(text[0], capsule(slot), 64);
		do_send(slot, length + from_hex(text[1], capsule(slot) + length, CAPSULE_MAX - length));
	} else if (strcmp(verb, "keyed") == 0 && sscanf(line, "%130s %u %u %x %x", text[0], &a, &b, &c, &d) == 5) {
		from_hex(text[0], capsule(slot), 64);
		do_keyed(slot, a, b, c, d);
	} else if (strcmp(verb, "answer") == 0 && sscanf(line, "%u", &a) == 1) {
		do_answer(slot, (int)a);
	} else if (strcmp(verb, "kill") == 0) {
		struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
		printf(ibv_modify_qp(slot->id->qp, &attr, IBV_QP_STATE) ? "failed\n" : "killed\n");
	} else if (strcmp(verb, "close") == 0) {
		rdma_disconnect(slot->id);
		forget(slot);
		printf("closed\n");
	} else {
		die(verb);
	}
}

int main(int argc, char **argv)
{
	static char line[4 * CAPSULE_MAX];
	if (argc != 3)
		return 2;
	snprintf(address, sizeof(address), "%s", argv[1]);
	snprintf(port, sizeof(port), "%s", argv[2]);
	memory = calloc(1, MEMORY);
	events = rdma_create_event_channel();
	if (!memory || !events)
		die("rdma_create_event_channel");
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin))
		obey(line);
	return 0;
}
