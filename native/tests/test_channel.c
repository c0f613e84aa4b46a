/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The capsule channel against a control plane that is well behaved, and against one that is not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "channel.h"
#include "channel_frame.h"
#include "fake_engine.h"
#include "log.h"
#include "loop.h"
#include "rpc_methods.h"

#define SLOTS 16
#define KEY 0x1122334455667788u

static int ours = -1; /* the control plane's end */
static unsigned lost_count;
static char answer[CHANNEL_BYTES_MAX];

static void lost(const char *why)
{
	(void)why;
	lost_count++;
}

static int setup(void **state)
{
	int pair[2];
	static const struct channel_options options = {
		.rpc_socket = "/run/x.sock", .activity_fd = -1, .activity_slots = SLOTS, .reset = rpc_view_reset, .lost = lost};

	(void)state;
	log_configure("off", "console");
	fake_reset();
	lost_count = 0;
	assert_int_equal(loop_open(), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	ours = pair[0];
	return channel_open_fd(pair[1], &options);
}

static int teardown(void **state)
{
	(void)state;
	channel_close();
	if (ours >= 0)
		close(ours);
	if (fake.adopted.fd >= 0)
		close(fake.adopted.fd);
	fake_reset();
	loop_close();
	return 0;
}

static void step(void)
{
	for (int i = 0; i < 8; i++)
		loop_step(0);
}

static void send_bytes(const void *bytes, size_t len, const int *fds, unsigned nfds)
{
	union {
		char buffer[CMSG_SPACE(8 * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec part = {(void *)bytes, len};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (nfds) {
		message.msg_control = control.buffer;
		message.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);

		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(header), fds, nfds * sizeof(int));
	}
	assert_int_equal(sendmsg(ours, &message, MSG_NOSIGNAL), (ssize_t)len);
	step();
}

static size_t build(char *packet, uint16_t type, const void *body, size_t len)
{
	const struct channel_header header = {
		.magic = CHANNEL_MAGIC, .version = CHANNEL_VERSION, .type = type, .length = (uint32_t)(sizeof(header) + len)};

	memcpy(packet, &header, sizeof(header));
	if (len)
		memcpy(packet + sizeof(header), body, len);
	return sizeof(header) + len;
}

static void send_message(uint16_t type, const void *body, size_t len, const int *fds, unsigned nfds)
{
	static char packet[CHANNEL_BYTES_MAX];

	send_bytes(packet, build(packet, type, body, len), fds, nfds);
}

/* The type of the next message, 0 when there is none, -1 at the end. */
static int receive(const void **body, size_t *len)
{
	struct channel_header header;
	ssize_t got = recv(ours, answer, sizeof(answer), MSG_DONTWAIT);

	if (got < 0)
		return 0;
	if (got == 0)
		return -1;
	memcpy(&header, answer, sizeof(header));
	assert_int_equal(header.magic, CHANNEL_MAGIC);
	assert_int_equal(header.length, got);
	*body = answer + sizeof(header);
	*len = (size_t)got - sizeof(header);
	return header.type;
}

static void greet(uint32_t features)
{
	const struct channel_hello hello = {.features = features, .pid = 1};
	const void *body;
	size_t len;

	send_message(CHANNEL_HELLO, &hello, sizeof(hello), NULL, 0);
	assert_int_equal(receive(&body, &len), CHANNEL_HELLO);
	assert_int_equal(len, sizeof(struct channel_hello) + strlen("/run/x.sock"));
}

static struct channel_adopt good_adopt(void)
{
	return (struct channel_adopt){
		.token = 5, .key = KEY, .qid = 1, .sqsize = 31, .sqhd = 1, .flags = CHANNEL_ADOPT_DDGST, .slot = 3, .peer = "p"};
}

static int adopt_answer(void)
{
	struct channel_adopted adopted;
	const void *body = NULL;
	size_t len = 0;

	assert_int_equal(receive(&body, &len), CHANNEL_ADOPTED);
	memcpy(&adopted, body, sizeof(adopted));
	assert_int_equal(adopted.token, 5);
	return adopted.rc;
}

static unsigned open_descriptors(void)
{
	unsigned count = 0;

	for (int fd = 0; fd < 256; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

static void test_adoption(void **state)
{
	struct channel_adopt adopt = good_adopt();
	char body[sizeof(adopt) + 24] = {0};
	int pair[2];

	(void)state;
	greet(0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	adopt.response_len = 24;
	memcpy(body, &adopt, sizeof(adopt));
	send_message(CHANNEL_ADOPT, body, sizeof(body), &pair[0], 1);
	assert_int_equal(adopt_answer(), 0);
	assert_int_equal(fake.adoptions, 1);
	assert_true(fake.adopted.key.ctrlr == KEY && fake.adopted.ddgst && !fake.adopted.hdgst);
	assert_int_equal(fake.adopted_response_len, 24);
	assert_string_equal(fake.adopted_peer, "p");
	assert_true(fcntl(fake.adopted.fd, F_GETFD) & FD_CLOEXEC);
	close(pair[0]);
	close(pair[1]);
}

/* The engine refuses, the slot is out of range, the descriptor is no stream socket: answered, and nothing leaks. */
static void test_refused_adoption_closes_the_descriptor(void **state)
{
	struct channel_adopt adopt = good_adopt();
	int pair[2];

	(void)state;
	greet(0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	const unsigned before = open_descriptors();

	fake.adopt_rc = -ENODEV;
	send_message(CHANNEL_ADOPT, &adopt, sizeof(adopt), &pair[0], 1);
	assert_int_equal(adopt_answer(), -ENODEV);
	adopt.slot = SLOTS;
	send_message(CHANNEL_ADOPT, &adopt, sizeof(adopt), &pair[0], 1);
	assert_int_equal(adopt_answer(), -ERANGE);
	adopt.slot = 0;
	send_message(CHANNEL_ADOPT, &adopt, sizeof(adopt), (int[]){STDIN_FILENO}, 1);
	assert_int_equal(adopt_answer(), -ENOTSOCK);
	assert_int_equal(open_descriptors(), before);
	assert_int_equal(lost_count, 0);
	close(pair[0]);
	close(pair[1]);
}

static void test_upcalls(void **state)
{
	const uint8_t sqe[64] = {0x7f};
	struct channel_upcall upcall;
	struct channel_upcall_done done = {.token = 9, .status = 0x182, .flags = CHANNEL_DONE_DNR, .dw0 = 4};
	const void *body;
	size_t len;

	(void)state;
	channel_upcall((struct dp_queue_key){KEY, 1}, 8, sqe, NULL, 0); /* nobody is there yet: the host may retry */
	assert_true(fake.upcall.token == 8 && fake.upcall.status == 0x21 && !fake.upcall.dnr);
	greet(0);
	channel_upcall((struct dp_queue_key){KEY, 1}, 9, sqe, "abc", 3);
	channel_upcall((struct dp_queue_key){KEY, 1}, 10, sqe, NULL, 0);
	assert_int_equal(receive(&body, &len), CHANNEL_UPCALL);
	assert_int_equal(len, sizeof(upcall) + 3);
	memcpy(&upcall, body, sizeof(upcall));
	assert_true(upcall.token == 9 && upcall.key == KEY && upcall.qid == 1 && upcall.data_len == 3);
	send_message(CHANNEL_UPCALL_DONE, &done, sizeof(done), NULL, 0);
	assert_true(fake.upcall.token == 9 && fake.upcall.status == 0x182 && fake.upcall.dnr && fake.upcall.dw0 == 4);
	send_message(CHANNEL_UPCALL_DONE, &done, sizeof(done), NULL, 0); /* twice */
	assert_int_equal(lost_count, 1);
	assert_true(fake.upcall.token == 10 && fake.upcall.status == 0x21); /* what was under way is interrupted */
	assert_int_equal(fake.upcall.count, 3);
}

static void test_events(void **state)
{
	const void *body;
	size_t len;

	(void)state;
	channel_bdev_changed("early", true); /* dropped: nobody has greeted */
	greet(0);
	channel_queue_closed((struct dp_queue_key){KEY, 2}, "peer gone");
	assert_int_equal(receive(&body, &len), CHANNEL_QUEUE_CLOSED);
	assert_memory_equal((const char *)body + sizeof(struct channel_queue_closed), "peer gone", 9);
	channel_bdev_changed("b0", false);
	assert_int_equal(receive(&body, &len), CHANNEL_BDEV_CHANGED);
	assert_memory_equal((const char *)body + 4, "b0", 2);
	channel_pool_lost("0000:03:00.0", "it was pulled out");
	assert_int_equal(receive(&body, &len), CHANNEL_POOL_LOST);
	assert_memory_equal(body, "0000:03:00.0\0it was pulled out", 30);
	assert_int_equal(len, 30);
}

/* More events than the socket takes are kept, in order; more than the bound ends the channel. */
static void test_control_plane_that_does_not_read(void **state)
{
	char text[2048];
	const void *body;
	size_t len;
	unsigned sent = 0, got = 0;

	(void)state;
	greet(0);
	memset(text, 'x', sizeof(text));
	text[sizeof(text) - 1] = 0;
	for (; sent < 1500; sent++)
		channel_queue_closed((struct dp_queue_key){sent, 1}, text);
	assert_int_equal(lost_count, 0);
	for (int rounds = 0; got < sent && rounds < 100000; rounds++) {
		struct channel_queue_closed closed;

		if (receive(&body, &len) != CHANNEL_QUEUE_CLOSED) {
			loop_step(0);
			continue;
		}
		memcpy(&closed, body, sizeof(closed));
		assert_int_equal(closed.key, got++);
	}
	assert_int_equal(got, sent);
	for (sent = 0; sent < 6000; sent++)
		channel_queue_closed((struct dp_queue_key){sent, 1}, text);
	assert_int_equal(lost_count, 1);
}

static void test_reset_waits_for_the_controllers(void **state)
{
	const struct channel_hello hello = {.features = CHANNEL_FEATURE_RESET, .pid = 1};
	const void *body;
	size_t len;

	(void)state;
	fake.hold = true;
	send_message(CHANNEL_HELLO, &hello, sizeof(hello), NULL, 0);
	assert_int_equal(receive(&body, &len), CHANNEL_HELLO); /* there was no controller: at once */
	assert_int_equal(lost_count, 0);
}

/* Each of these ends the channel: a supervisor restarts it. None leaks its descriptors. */
static void test_malformed(void **state)
{
	struct channel_adopt adopt = good_adopt();
	struct channel_upcall_done done = {.token = 77};
	char packet[256];
	size_t len = 0;
	int fds[8], nfds = 0;

	for (unsigned i = 0; i < 8; i++)
		fds[i] = STDIN_FILENO;
	for (int kind = 0; kind < 18; kind++) {
		if (kind)
			setup(state);
		const unsigned before = open_descriptors();

		if (kind >= 4)
			greet(0);
		adopt = good_adopt();
		nfds = kind >= 8 && kind < 16 ? 1 : 0;
		switch (kind) {
		case 0: /* not even a header */
			len = 3;
			memset(packet, 0, len);
			break;
		case 1: /* before HELLO */
			len = build(packet, CHANNEL_UPCALL_DONE, &done, sizeof(done));
			break;
		case 2: /* HELLO that is too short */
			len = build(packet, CHANNEL_HELLO, &done, 4);
			break;
		case 3: /* with a descriptor */
			len = build(packet, CHANNEL_HELLO, &done, 8);
			nfds = 1;
			break;
		case 4:
			len = build(packet, CHANNEL_HELLO, &done, 8);
			break;
		case 5: /* from the data plane only */
			len = build(packet, CHANNEL_ADOPTED, &done, 16);
			break;
		case 6:
			len = build(packet, 99, &done, 16);
			break;
		case 7: /* the length in the header */
			len = build(packet, CHANNEL_UPCALL_DONE, &done, sizeof(done));
			packet[8]++;
			break;
		case 8:
			adopt.response_len = 1;
			break;
		case 9:
			adopt.qid = 0;
			break;
		case 10:
			adopt.sqsize = 0;
			break;
		case 11:
			adopt.flags |= CHANNEL_ADOPT_SQ_FLOW_CONTROL; /* without it, SQHD is FFFFh */
			adopt.sqhd = adopt.sqsize + 1;
			break;
		case 12:
			adopt.flags = 0x10;
			break;
		case 13:
			adopt.cpda = 32;
			break;
		case 14:
			memset(adopt.peer, 'x', sizeof(adopt.peer));
			break;
		case 15:
			nfds = 8;
			break;
		case 16: /* nfds 0 */
			break;
		case 17:
			done.flags = 4;
			len = build(packet, CHANNEL_UPCALL_DONE, &done, sizeof(done));
			break;
		}
		if (kind >= 8 && kind < 17)
			len = build(packet, CHANNEL_ADOPT, &adopt, sizeof(adopt));
		send_bytes(packet, len, fds, (unsigned)nfds);
		assert_int_equal(lost_count, 1);
		assert_int_equal(open_descriptors(), before - 1); /* the data plane's end of the channel */
		assert_int_equal(fake.adoptions, 0);
		if (kind < 17)
			teardown(state);
	}
}

static void test_other_version_is_answered_with_ours(void **state)
{
	struct channel_hello hello = {0};
	char packet[64];
	size_t len = build(packet, CHANNEL_HELLO, &hello, sizeof(hello));
	const void *body;

	(void)state;
	packet[4] = 2;
	send_bytes(packet, len, NULL, 0);
	assert_int_equal(receive(&body, &len), CHANNEL_HELLO);
	assert_int_equal(receive(&body, &len), -1);
	assert_int_equal(lost_count, 1);
}

static void test_end_of_the_control_plane(void **state)
{
	(void)state;
	greet(0);
	close(ours);
	ours = -1;
	step();
	assert_int_equal(lost_count, 1);
	channel_queue_closed((struct dp_queue_key){KEY, 2}, "to nobody");
}

/* -- NVMe/RDMA */

static void test_rdma_events(void **state)
{
	struct dp_rdma_connected connected = {.conn = 7, .adrfam = 1, .local_port = 4420, .qid = 2, .hsqsize = 31, .hrqsize = 32};
	struct channel_rdma_connected told;
	struct channel_rdma_capsule capsule;
	struct channel_rdma_data data;
	uint8_t sqe[64] = {0x7F};
	const void *body;
	size_t len;

	(void)state;
	greet(0);
	channel_rdma_events.connected(&connected);
	assert_int_equal(receive(&body, &len), CHANNEL_RDMA_CONNECTED);
	assert_int_equal(len, sizeof(told));
	memcpy(&told, body, sizeof(told));
	assert_int_equal(told.conn, 7);
	assert_int_equal(told.port, 4420);
	assert_int_equal(told.hsqsize, 31);
	channel_rdma_events.capsule(7, sqe, "abc", 3);
	assert_int_equal(receive(&body, &len), CHANNEL_RDMA_CAPSULE);
	assert_int_equal(len, sizeof(capsule) + 3);
	memcpy(&capsule, body, sizeof(capsule));
	assert_int_equal(capsule.icd_len, 3);
	assert_int_equal(capsule.sqe[0], 0x7F);
	channel_rdma_events.data(7, 9, -EINVAL, NULL, 0);
	assert_int_equal(receive(&body, &len), CHANNEL_RDMA_DATA);
	memcpy(&data, body, sizeof(data));
	assert_int_equal(data.cid, 9);
	assert_int_equal(data.rc, -EINVAL);
	channel_rdma_events.closed(7, "why");
	assert_int_equal(receive(&body, &len), CHANNEL_RDMA_CLOSED);
	assert_int_equal(len, sizeof(struct channel_rdma_conn) + 3);
}

static void test_rdma_orders(void **state)
{
	const struct channel_rdma_fetch fetch = {.conn = 7, .cid = 3, .length = 1024};
	const struct channel_rdma_conn conn = {.conn = 7};
	struct channel_rdma_reply reply = {.conn = 7, .flags = DP_RDMA_REPLY_LAST, .offset = 64};
	char body[sizeof(reply) + 4] = {0};

	(void)state;
	greet(0);
	send_message(CHANNEL_RDMA_FETCH, &fetch, sizeof(fetch), NULL, 0);
	assert_int_equal(fake_rdma.fetches, 1);
	assert_int_equal(fake_rdma.cid, 3);
	assert_int_equal(fake_rdma.length, 1024);
	memcpy(body, &reply, sizeof(reply));
	memcpy(body + sizeof(reply), "data", 4);
	send_message(CHANNEL_RDMA_REPLY, body, sizeof(body), NULL, 0);
	assert_int_equal(fake_rdma.replies, 1);
	assert_int_equal(fake_rdma.length, 4);
	assert_int_equal(fake_rdma.offset, 64);
	assert_memory_equal(fake_rdma.data, "data", 4);
	send_message(CHANNEL_RDMA_CLOSE, &conn, sizeof(conn), NULL, 0);
	assert_int_equal(fake_rdma.closes, 1);
	assert_int_equal(lost_count, 0);
}

static void test_rdma_adoption(void **state)
{
	struct channel_rdma_adopt adopt = {.token = 5, .key = KEY, .conn = 7, .qid = 1, .sqsize = 31, .slot = 3, .peer = "p"};

	(void)state;
	greet(0);
	send_message(CHANNEL_RDMA_ADOPT, &adopt, sizeof(adopt), NULL, 0);
	assert_int_equal(adopt_answer(), 0);
	assert_int_equal(fake_rdma.queue.key.ctrlr, KEY);
	assert_int_equal(fake_rdma.queue.sqsize, 31);
	adopt.conn = 99;
	send_message(CHANNEL_RDMA_ADOPT, &adopt, sizeof(adopt), NULL, 0);
	assert_int_equal(adopt_answer(), -ENOTCONN);
	adopt.slot = SLOTS;
	send_message(CHANNEL_RDMA_ADOPT, &adopt, sizeof(adopt), NULL, 0);
	assert_int_equal(adopt_answer(), -ERANGE);
	assert_int_equal(fake_rdma.adopts, 2);
}

static void test_rdma_malformed(void **state)
{
	static const struct {
		uint16_t type;
		size_t len;
		size_t at;
		uint8_t value;
	} cases[] = {
		{CHANNEL_RDMA_FETCH, sizeof(struct channel_rdma_fetch) - 1, 0, 0},
		{CHANNEL_RDMA_FETCH, sizeof(struct channel_rdma_fetch) + 1, 0, 0},
		{CHANNEL_RDMA_REPLY, sizeof(struct channel_rdma_reply) - 1, 0, 0},
		{CHANNEL_RDMA_REPLY, sizeof(struct channel_rdma_reply), offsetof(struct channel_rdma_reply, flags), 8},
		{CHANNEL_RDMA_ADOPT, sizeof(struct channel_rdma_adopt), 0, 0}, /* QID 0 */
		{CHANNEL_RDMA_CLOSE, 7, 0, 0},
		{CHANNEL_RDMA_CONNECTED, sizeof(struct channel_rdma_connected), 0, 0}, /* ours to say */
		{24, 8, 0, 0},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		uint8_t body[256] = {0};

		body[cases[i].at] = cases[i].value;
		if (i) {
			teardown(state);
			assert_int_equal(setup(state), 0);
		}
		greet(0);
		send_message(cases[i].type, body, cases[i].len, NULL, 0);
		assert_int_equal(lost_count, 1);
	}
	assert_int_equal(fake_rdma.fetches + fake_rdma.replies + fake_rdma.adopts + fake_rdma.closes, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_adoption),
		TEST(test_refused_adoption_closes_the_descriptor),
		TEST(test_upcalls),
		TEST(test_events),
		TEST(test_control_plane_that_does_not_read),
		TEST(test_reset_waits_for_the_controllers),
		TEST(test_malformed),
		TEST(test_other_version_is_answered_with_ours),
		TEST(test_end_of_the_control_plane),
		TEST(test_rdma_events),
		TEST(test_rdma_orders),
		TEST(test_rdma_adoption),
		TEST(test_rdma_malformed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
