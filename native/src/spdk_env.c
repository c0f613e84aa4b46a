/* SPDX-License-Identifier: BSD-3-Clause
 *
 * spdk_env.c: SPDK's environment (DPDK), the thread that waits for drives, and the memory that drives reach.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <spdk/log.h>
#include <spdk/version.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "spdk_priv.h"

#define REGIONS_MAX 256u
#define REGION_ALIGN (2u << 20)
#define ENV_MIB_BASE 64
#define ENV_MIB_REACTOR 16 /* queue pairs and bounce buffers of a few controllers */
#define ENV_MIB_MAX 1024

enum env_state { ENV_NONE, ENV_STARTING, ENV_RUNS, ENV_FAILED };

static struct {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	pthread_t thread;
	bool thread_runs, hugepages;
	STAILQ_HEAD(, task) tasks;
	uint64_t (*round)(uint64_t now_ns);
	_Atomic unsigned state;
	int rc;
	char err[DP_ERR_MAX];
	void *zeroes;
} env = { .lock = PTHREAD_MUTEX_INITIALIZER, .tasks = STAILQ_HEAD_INITIALIZER(env.tasks) };

/* -- SIGBUS */

static struct sigaction librarys;

/*
 * A drive that is pulled out makes accesses to its registers fault. The library has a handler for that from the moment it
 * is loaded, which ends in an endless loop where the fault is none of its drives'. So: its turn first, once, and if that did
 * not help, what would have happened without it.
 */
static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	static __thread void *last;
	int error = errno;

	if (info->si_code > 0 && info->si_addr != last && atomic_load(&env.state) == ENV_RUNS) {
		last = info->si_addr;
		librarys.sa_sigaction(sig, info, context);
	} else {
		signal(sig, SIG_DFL);
		if (info->si_code <= 0)
			raise(sig);
	}
	errno = error;
}

void dp_spdk_early(bool hugepages)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO }, now;

	env.hugepages = hugepages;
	if (sigaction(SIGBUS, NULL, &now) < 0 || !(now.sa_flags & SA_SIGINFO) || now.sa_sigaction == on_sigbus)
		return;
	librarys = now;
	sigfillset(&action.sa_mask);
	sigaction(SIGBUS, &action, NULL);
}

/* -- memory */

/* bytes 0: free. Written under lock, read without: a region is only taken away when nobody uses it any more. */
static struct {
	_Atomic uintptr_t base;
	_Atomic size_t bytes;
	bool registered;
} regions[REGIONS_MAX];
static _Atomic unsigned n_regions;
static pthread_mutex_t regions_lock = PTHREAD_MUTEX_INITIALIZER;

static int region_register(unsigned i)
{
	int rc = spdk_mem_register((void *)atomic_load(&regions[i].base), atomic_load(&regions[i].bytes));

	regions[i].registered = rc == 0;
	return rc;
}

int dp_spdk_mem_add(void *addr, size_t bytes)
{
	unsigned i = 0;
	int rc = 0;

	if (!bytes || ((uintptr_t)addr | bytes) & (REGION_ALIGN - 1))
		return -EINVAL;
	pthread_mutex_lock(&regions_lock);
	while (i < atomic_load(&n_regions) && atomic_load(&regions[i].bytes))
		i++;
	if (i == REGIONS_MAX) {
		rc = -ENOSPC;
	} else {
		atomic_store(&regions[i].base, (uintptr_t)addr);
		atomic_store(&regions[i].bytes, bytes);
		regions[i].registered = false;
		if (atomic_load(&env.state) == ENV_RUNS)
			rc = region_register(i);
		if (rc < 0)
			atomic_store(&regions[i].bytes, 0);
		else if (i == atomic_load(&n_regions))
			atomic_store(&n_regions, i + 1);
	}
	pthread_mutex_unlock(&regions_lock);
	return rc;
}

void dp_spdk_mem_remove(void *addr, size_t bytes)
{
	pthread_mutex_lock(&regions_lock);
	for (unsigned i = 0; i < atomic_load(&n_regions); i++) {
		if (atomic_load(&regions[i].base) != (uintptr_t)addr || atomic_load(&regions[i].bytes) != bytes)
			continue;
		atomic_store(&regions[i].bytes, 0);
		if (regions[i].registered)
			spdk_mem_unregister(addr, bytes);
		regions[i].registered = false;
	}
	pthread_mutex_unlock(&regions_lock);
}

bool dp_spdk_mem_reaches(const void *addr, size_t bytes)
{
	unsigned n = atomic_load_explicit(&n_regions, memory_order_acquire);

	for (unsigned i = 0; i < n; i++) {
		uintptr_t at = (uintptr_t)addr - atomic_load_explicit(&regions[i].base, memory_order_relaxed);
		size_t size = atomic_load_explicit(&regions[i].bytes, memory_order_acquire);

		if (at < size && bytes <= size - at)
			return true;
	}
	return false;
}

static int register_all(void)
{
	int rc = 0;

	pthread_mutex_lock(&regions_lock);
	for (unsigned i = 0; i < atomic_load(&n_regions) && rc == 0; i++)
		if (atomic_load(&regions[i].bytes))
			rc = region_register(i);
	if (rc == 0)
		atomic_store(&env.state, ENV_RUNS); /* what comes from now on is registered when it comes */
	pthread_mutex_unlock(&regions_lock);
	return rc;
}

void *spdk_env_zeroes(void)
{
	return env.zeroes;
}

/* Releases before 25.09 give memory that is not in huge pages no address for drives. */
bool spdk_env_dma(void)
{
	return spdk_vtophys(env.zeroes, NULL) != SPDK_VTOPHYS_ERROR;
}

/* -- the environment */

static void library_log(int level, const char *file, const int line, const char *func, const char *format, va_list args)
{
	static const enum log_level levels[] = { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG, LOG_DEBUG };
	char text[512];
	size_t len;

	vsnprintf(text, sizeof(text), format, args);
	for (len = strlen(text); len && text[len - 1] == '\n'; len--)
		text[len - 1] = 0;
	log_event(levels[level < 0 || level > SPDK_LOG_DEBUG ? SPDK_LOG_DEBUG : level], "spdk", "%s", text);
}

static bool huge_pages_free(int mib)
{
	FILE *file = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");
	long pages = 0;

	if (!file)
		return false;
	if (fscanf(file, "%ld", &pages) != 1)
		pages = 0;
	fclose(file);
	return pages >= mib / 2;
}

#ifndef DP_SPDK_ENV_OPTS_NO_HUGE
static char no_huge[] = "--no-huge --legacy-mem";
#endif

static int env_open(void)
{
	/* Without a list DPDK would try its drivers on every device of the machine, network cards too. What is attached by its
	 * address need not be in it. */
	struct spdk_pci_addr none = { .domain = 0xFFFF, .bus = 0xFF, .dev = 0x1F, .func = 7 };
	struct spdk_env_opts opts;
	char core[16];
	bool huge;
	cpu_set_t cpus;
	bool bound = sched_getaffinity(0, sizeof(cpus), &cpus) == 0;
	int mib = ENV_MIB_BASE + ENV_MIB_REACTOR * (int)engine_reactors(), rc;

	memset(&opts, 0, sizeof(opts));
#ifdef DP_SPDK_ENV_OPTS_SIZE
	opts.opts_size = sizeof(opts);
#endif
	spdk_env_opts_init(&opts);
	snprintf(core, sizeof(core), "[%d]", sched_getcpu());
	opts.name = "nvmet-p2p";
	opts.core_mask = core;
	opts.mem_size = mib > ENV_MIB_MAX ? ENV_MIB_MAX : mib;
	opts.iova_mode = "va";
	opts.shm_id = -1;
	opts.pci_allowed = &none;
	opts.num_pci_addr = 1;
	huge = env.hugepages && huge_pages_free(opts.mem_size);
	opts.unlink_hugepage = huge;
#ifdef DP_SPDK_ENV_OPTS_NO_HUGE
	opts.no_huge = !huge;
#else /* releases before that member */
	opts.env_context = huge ? NULL : no_huge;
#endif
	spdk_log_open(library_log);
	rc = spdk_env_init(&opts);
	if (bound)
		sched_setaffinity(0, sizeof(cpus), &cpus); /* DPDK has bound this thread to one */
	if (rc < 0) {
		snprintf(env.err, sizeof(env.err), "SPDK's environment did not start (%s); the log above says why", strerror(-rc));
		return rc;
	}
	env.zeroes = spdk_dma_zmalloc(BOUNCE_BYTES, 4096, NULL);
	rc = env.zeroes ? register_all() : -ENOMEM;
	if (rc < 0)
		snprintf(env.err, sizeof(env.err), "SPDK cannot register the staging memory: %s (memlock limit?)", strerror(-rc));
	else
		log_info("spdk.started", "%s, %d MiB %s", SPDK_VERSION_STRING, opts.mem_size,
			 huge ? "in huge pages" : "without huge pages");
	return rc;
}

/* -- the thread */

void admin_send(struct task *task)
{
	pthread_mutex_lock(&env.lock);
	STAILQ_INSERT_TAIL(&env.tasks, task, link);
	pthread_cond_signal(&env.wake);
	pthread_mutex_unlock(&env.lock);
}

void admin_round(uint64_t (*round)(uint64_t now_ns))
{
	env.round = round;
}

static void wait_until(uint64_t ns)
{
	struct timespec at = { .tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u) };

	if (ns == UINT64_MAX)
		pthread_cond_wait(&env.wake, &env.lock);
	else
		pthread_cond_timedwait(&env.wake, &env.lock, &at);
}

static void *admin_main(void *arg)
{
	uint64_t next = UINT64_MAX;

	pthread_mutex_lock(&env.lock);
	for (;;) {
		struct task *task = STAILQ_FIRST(&env.tasks);

		if (task) {
			STAILQ_REMOVE_HEAD(&env.tasks, link);
			pthread_mutex_unlock(&env.lock);
			task->fn(task);
			next = 0;
		} else if (dp_now_ns() < next) {
			wait_until(next);
			continue;
		} else {
			pthread_mutex_unlock(&env.lock);
			next = env.round ? env.round(dp_now_ns()) : UINT64_MAX;
		}
		pthread_mutex_lock(&env.lock);
	}
	return NULL;
}

static int thread_start(void)
{
	pthread_condattr_t monotonic;
	int rc;

	if (env.thread_runs)
		return 0;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&env.wake, &monotonic);
	rc = -pthread_create(&env.thread, NULL, admin_main, NULL);
	if (rc < 0)
		return rc;
	env.thread_runs = true;
	pthread_setname_np(env.thread, "spdk-admin");
	return 0;
}

struct start {
	struct task task;
	dp_spdk_done_fn done;
	void *arg;
};

static void started(void *arg)
{
	struct start *start = arg;

	start->done(start->arg, env.rc, env.err);
	free(start);
}

static void start_env(struct task *task)
{
	struct start *start = dp_container_of(task, struct start, task);

	if (atomic_load(&env.state) == ENV_STARTING) {
		env.rc = env_open();
		if (env.rc < 0)
			atomic_store(&env.state, ENV_FAILED);
	}
	engine_post(started, start);
}

void dp_spdk_start(dp_spdk_done_fn done, void *arg)
{
	struct start *start = malloc(sizeof(*start));
	int rc = start ? thread_start() : -ENOMEM;

	if (rc < 0) {
		free(start);
		done(arg, rc, strerror(-rc));
		return;
	}
	*start = (struct start){ { .fn = start_env }, done, arg };
	if (atomic_load(&env.state) == ENV_NONE)
		atomic_store(&env.state, ENV_STARTING);
	admin_send(&start->task);
}

bool dp_spdk_built(void)
{
	return true;
}

const char *dp_spdk_version(void)
{
	return SPDK_VERSION_STRING;
}

bool dp_spdk_active(void)
{
	return atomic_load(&env.state) == ENV_RUNS;
}
