/* SPDX-License-Identifier: BSD-3-Clause
 *
 * fuzz_rpc.c: whatever a client of the JSON-RPC socket sends, in pieces of any size. The first byte of the input is the
 * size of the pieces; 0: all at once.
 */
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "fake_engine.h"
#include "log.h"
#include "loop.h"
#include "rpc_methods.h"

static struct sockaddr_un address = {.sun_family = AF_UNIX};

static void start(void)
{
	char err[DP_ERR_MAX];

	log_configure("off", "console");
	fake_reset();
	snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/nvmet-p2p-fuzz-%d.sock", (int)getpid());
	if (loop_open() < 0 || rpc_listen(address.sun_path, rpc_methods, err) < 0)
		abort();
	atexit(rpc_close);
}

static void drop_bdevs(void)
{
	rpc_bdev_forget_all();
	fake_reset();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool started;
	char answers[65536];

	if (!started)
		start();
	started = true;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		abort();
	const size_t piece = size && data[0] ? data[0] : size;

	for (size_t at = 1; at < size;) {
		const size_t len = size - at < piece ? size - at : piece;
		ssize_t sent = send(fd, data + at, len, MSG_NOSIGNAL);

		if (sent < 0)
			break;
		at += (size_t)sent;
		for (int i = 0; i < 3; i++)
			loop_step(0);
		while (recv(fd, answers, sizeof(answers), 0) > 0)
			;
	}
	close(fd);
	for (int i = 0; i < 4; i++)
		loop_step(0);
	drop_bdevs();
	return 0;
}
