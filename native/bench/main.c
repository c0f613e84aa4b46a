/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nvmet-p2p-bench: connects, loads, reports. See options.c for the options, bench.h for the parts.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "pattern.h"

struct run bench = {.admin = {.fd = -1}};

static pthread_mutex_t failure_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int failure_status;
static char failure_text[512];

int bench_fail(int status, const char *format, ...)
{
	int saved = errno;
	va_list args;
	pthread_mutex_lock(&failure_lock);
	if (failure_status == 0) {
		errno = saved; /* for %m */
		va_start(args, format);
		vsnprintf(failure_text, sizeof(failure_text), format, args);
		va_end(args);
		failure_status = status;
		bench.stopped_ns = now_ns();
		bench.stop = true;
	}
	pthread_mutex_unlock(&failure_lock);
	return -1;
}

bool bench_failed(void)
{
	return failure_status != 0;
}

const char *bench_failure(void)
{
	return bench_failed() ? failure_text : NULL;
}

uint64_t now_ns(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * NSEC + (uint64_t)time.tv_nsec;
}

/* What the options ask for against what the target has. */
static int fit(void)
{
	const struct target *target = &bench.target;
	struct options *opt = &bench.opt;
	uint32_t entries = opt->queue_size ? opt->queue_size : opt->depth + 1;
	bench.unit_blocks = opt->bs / target->lba_size;
	if (opt->bs % target->lba_size || bench.unit_blocks > 65536)
		return bench_fail(EXIT_USAGE, "--bs %u: LBAs have %u bytes, and a command at most 65536 of them", opt->bs,
				  target->lba_size);
	if (target->transfer_max && opt->bs > target->transfer_max)
		return bench_fail(EXIT_USAGE, "--bs %u: the target takes at most %llu bytes (MDTS)", opt->bs,
				  (unsigned long long)target->transfer_max);
	if (entries > target->entries_max)
		return bench_fail(EXIT_USAGE, "--depth %u needs a queue of %u entries, the target has %u (CAP.MQES)",
				  opt->depth, entries, target->entries_max);
	if (opt->lba_start >= target->blocks)
		return bench_fail(EXIT_USAGE, "--lba-start: the namespace has %llu LBAs",
				  (unsigned long long)target->blocks);
	if (opt->lba_count == 0)
		opt->lba_count = target->blocks - opt->lba_start;
	if (opt->lba_count > target->blocks - opt->lba_start)
		return bench_fail(EXIT_USAGE, "--lba-count: the namespace has %llu LBAs",
				  (unsigned long long)target->blocks);
	bench.units = opt->lba_count / bench.unit_blocks;
	if (bench.units < opt->queues)
		return bench_fail(EXIT_USAGE, "the LBA range holds fewer units of %u bytes than there are queues", opt->bs);
	if (opt->verify && bench.units > VERIFY_UNITS_MAX)
		return bench_fail(EXIT_USAGE, "--verify: give a smaller --lba-count");
	bench.payload = malloc(opt->bs);
	if (bench.payload == NULL)
		return bench_fail(EXIT_RUN_FAILED, "no memory");
	pattern_fill(bench.payload, opt->bs, target->lba_size, 0, 0, opt->seed);
	return 0;
}

/* Waits for something to do: a signal, the end, or the next Keep Alive. */
static void supervise(int signals)
{
	uint64_t period = bench.opt.kato_ms ? bench.opt.kato_ms * (NSEC / 2000) : 3600 * NSEC, next = now_ns() + period;
	for (;;) {
		struct pollfd fds[] = {
			{.fd = workers_done_fd(), .events = POLLIN},
			{.fd = signals, .events = POLLIN},
			{.fd = bench_failed() ? -1 : bench.admin.fd, .events = POLLIN | POLLRDHUP},
		};
		uint64_t now = now_ns(), until = watch_step(now);
		until = until < next ? until : next;
		poll(fds, 3, until > now ? (int)((until - now + 999999) / 1000000) : 0);
		if (fds[0].revents) {
			watch_end();
			return;
		}
		if (fds[1].revents && !bench.interrupted) {
			bench.interrupted = true;
			bench.stopped_ns = now_ns();
			bench.stop = true;
		}
		if (fds[1].revents) {
			struct signalfd_siginfo info;
			if (read(signals, &info, sizeof(info)) < 0)
				return;
		}
		if (fds[2].revents) /* nothing is outstanding on the admin queue */
			bench_fail(EXIT_RUN_FAILED, "the target ended the admin queue's connection");
		else if (!bench_failed() && now_ns() >= next && host_keep_alive() == 0)
			next = now_ns() + period;
		if (bench_failed())
			next = now_ns() + 3600 * NSEC; /* only the end is of interest */
	}
}

int main(int argc, char **argv)
{
	static struct stats stats;
	sigset_t set;
	options_parse(&bench.opt, argc, argv);
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	if (host_start() == 0 && fit() == 0) {
		sigprocmask(SIG_BLOCK, &set, NULL); /* threads inherit it; before, a signal just ends the process */
		int signals = signalfd(-1, &set, SFD_CLOEXEC);
		if (workers_start() == 0)
			supervise(signals);
		close(signals);
	}
	workers_join(&stats);
	host_stop();
	report(&stats);
	free(bench.payload);
	if (bench_failed())
		return failure_status;
	return bench.interrupted ? EXIT_INTERRUPTED : 0;
}
