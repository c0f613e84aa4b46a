/* SPDX-License-Identifier: BSD-3-Clause
 *
 * fuzz_channel.c: whatever a process at the other end of the capsule channel sends: no crash, no leak, no descriptor
 * left, and each upcall answered exactly once.
 *
 * Input: packets. Each begins with one byte (bits 0 to 2: descriptors that come with it; bit 3: an upcall happens
 * first) and a length (u16, little endian); then so many bytes.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "channel.h"
#include "fake_engine.h"
#include "log.h"
#include "loop.h"
#include "rpc_methods.h"

#define FDS_MAX 7
#define CHECKED_FDS 64

static int spare; /* a stream socket to give away */

static void lost(const char *why)
{
	(void)why;
}

static void send_packet(int fd, const uint8_t *data, size_t len, unsigned nfds)
{
	union {
		char buffer[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec part = {(void *)data, len};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (nfds) {
		message.msg_control = control.buffer;
		message.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);

		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		for (unsigned i = 0; i < nfds; i++)
			memcpy(CMSG_DATA(header) + i * sizeof(int), &spare, sizeof(int));
	}
	sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static unsigned open_descriptors(void)
{
	unsigned count = 0;

	for (int fd = 0; fd < CHECKED_FDS; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

static void start(void)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
		abort();
	spare = pair[0];
	log_configure("off", "console");
	fake_reset();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct channel_options options = {
		.rpc_socket = "/x", .activity_fd = -1, .activity_slots = 16, .reset = rpc_view_reset, .lost = lost};
	static bool started;
	unsigned upcalls = 0;
	int pair[2];

	if (!started)
		start();
	started = true;
	const unsigned before = open_descriptors();

	if (loop_open() < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) < 0 ||
	    channel_open_fd(pair[1], &options) < 0)
		abort();
	while (size >= 3) {
		const unsigned nfds = data[0] & 7;
		size_t len = (size_t)data[1] | (size_t)data[2] << 8;

		if (data[0] & 8) {
			const uint8_t sqe[64] = {0};

			channel_upcall((struct dp_queue_key){1, 1}, ++upcalls, sqe, data, size < 64 ? size : 64);
		}
		data += 3;
		size -= 3;
		len = len < size ? len : size;
		send_packet(pair[0], data, len, nfds);
		data += len;
		size -= len;
		for (int i = 0; i < 4; i++)
			loop_step(0);
	}
	channel_close();
	close(pair[0]);
	if (fake.upcall.count != upcalls)
		abort();
	if (fake.adopted.fd >= 0)
		close(fake.adopted.fd);
	fake_reset();
	loop_close();
	if (open_descriptors() != before)
		abort();
	return 0;
}
