/* SPDX-License-Identifier: BSD-3-Clause */
#include "loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "log.h"

#define BATCH 64

struct posted {
	struct posted *next;
	void (*fn)(void *arg);
	void *arg;
};

static int epoll_fd = -1, wake_fd = -1;
static bool quitting;
static struct epoll_event fetched[BATCH];
static int fetched_count;

static pthread_mutex_t post_lock = PTHREAD_MUTEX_INITIALIZER; /* protects the list below */
static struct posted *first;
static struct posted **last = &first;

static void run_posted(struct loop_source *source, uint32_t events)
{
	uint64_t count;
	ssize_t got = read(source->fd, &count, sizeof(count));

	(void)got;
	pthread_mutex_lock(&post_lock);
	struct posted *list = first;
	first = NULL;
	last = &first;
	pthread_mutex_unlock(&post_lock);
	while (list) {
		struct posted *next = list->next;

		list->fn(list->arg);
		free(list);
		list = next;
	}
}

static struct loop_source wake = {.fd = -1, .ready = run_posted};

int loop_open(void)
{
	quitting = false;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (epoll_fd < 0 || wake_fd < 0)
		return -errno;
	wake.fd = wake_fd;
	return loop_add(&wake, EPOLLIN);
}

void loop_close(void)
{
	if (wake_fd >= 0)
		run_posted(&wake, 0);
	close(wake_fd);
	close(epoll_fd);
	epoll_fd = wake_fd = -1;
}

int loop_add(struct loop_source *source, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = source};

	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, source->fd, &event) < 0 ? -errno : 0;
}

int loop_change(struct loop_source *source, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = source};

	return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, source->fd, &event) < 0 ? -errno : 0;
}

void loop_remove(struct loop_source *source)
{
	epoll_ctl(epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
	for (int i = 0; i < fetched_count; i++)
		if (fetched[i].data.ptr == source)
			fetched[i].data.ptr = NULL;
}

void loop_post(void (*fn)(void *arg), void *arg)
{
	struct posted *work = malloc(sizeof(*work));
	const uint64_t one = 1;

	if (!work) { /* a completion that is lost would hang its caller for ever: better to be restarted */
		log_error("process.no_memory", "no memory for a message to the control thread");
		abort();
	}
	*work = (struct posted){.fn = fn, .arg = arg};
	pthread_mutex_lock(&post_lock);
	*last = work;
	last = &work->next;
	pthread_mutex_unlock(&post_lock);
	ssize_t written = write(wake_fd, &one, sizeof(one)); /* fails only when it is awake already */
	(void)written;
}

void loop_step(int timeout_ms)
{
	fetched_count = epoll_wait(epoll_fd, fetched, BATCH, timeout_ms);
	if (fetched_count < 0)
		fetched_count = 0; /* EINTR */
	for (int i = 0; i < fetched_count; i++) {
		struct loop_source *source = fetched[i].data.ptr;

		if (source)
			source->ready(source, fetched[i].events);
	}
	fetched_count = 0;
}

void loop_run(void)
{
	while (!quitting)
		loop_step(-1);
}

void loop_quit(void)
{
	quitting = true;
}
