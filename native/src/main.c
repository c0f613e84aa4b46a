/* SPDX-License-Identifier: BSD-3-Clause
 *
 * main.c: nvmet-p2p-dataplane: options, signals, and the parts joined together. The control thread is this one.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "channel.h"
#include "engine.h"
#include "log.h"
#include "loop.h"
#include "rpc_methods.h"
#include "sd_notify.h"
#include "spdk.h"

#define ACTIVITY_SLOTS 65536u
#define SPIN_US_MAX 1000000
#define POOL_MIB_MAX (1 << 20)
#define ZERO_COPY_KIB_MAX (1 << 20)
#define BDEV_CHECK_S 2
#define DRAIN_S 30 /* a back end that does not answer for so long does not keep the process alive */

struct settings {
	const char *rpc_socket, *channel_socket, *cpumask, *log_level, *log_format;
	uint64_t channel_fd, activity_fd, spin_us, pool_mib, zero_copy_min_kib;
	enum dp_zero_copy zero_copy;
	bool keep, no_hugepages;
};

static struct settings settings = {
	.log_level = "info",
	.log_format = "console",
	.channel_fd = UINT64_MAX,
	.activity_fd = UINT64_MAX,
	.spin_us = 20,
	.pool_mib = 64,
	.zero_copy_min_kib = 16,
};
static bool stopping;

static const char usage_text[] =
	"usage: nvmet-p2p-dataplane --rpc-socket PATH (--channel-fd N | --channel-socket PATH) [option ...]\n"
	"Serves I/O queues of NVMe/TCP and NVMe/RDMA for a control plane (nvmet-p2p serve), which normally starts it.\n"
	"  --rpc-socket PATH      Unix socket of its JSON-RPC server\n"
	"  --channel-fd N         capsule channel: an inherited SOCK_SEQPACKET socket; without --keep, its end is ours\n"
	"  --channel-socket PATH  capsule channel: listen there, for one control plane after the other\n"
	"  --keep                 with --channel-fd: go on when the control plane is gone\n"
	"  --activity-fd N        inherited memory of 65536 counters, shared with the control plane\n"
	"  --cpumask MASK         a reactor for each CPU: 0x3, [0,2-3]; default: one reactor on any CPU\n"
	"  --spin-us N            how long a reactor polls after work before it sleeps (default 20; 0: never)\n"
	"  --pool-mib N           staging memory of all reactors together (default 64)\n"
	"  --no-hugepages         do not try huge pages\n"
	"  --zero-copy-send MODE  of large reads: auto (default: where the network device can), off, always (for tests)\n"
	"  --zero-copy-min-kib N  a read of which size is large (default 16)\n"
	"  --log-level LEVEL      debug, info (default), warning, error\n"
	"  --log-format FORMAT    console (default), json\n"
	"  --version, --help\n";

static const struct option long_options[] = {
	{"rpc-socket", required_argument, NULL, 'r'},    {"channel-fd", required_argument, NULL, 'c'},
	{"channel-socket", required_argument, NULL, 'C'}, {"keep", no_argument, NULL, 'k'},
	{"activity-fd", required_argument, NULL, 'a'},   {"cpumask", required_argument, NULL, 'm'},
	{"spin-us", required_argument, NULL, 's'},       {"pool-mib", required_argument, NULL, 'p'},
	{"no-hugepages", no_argument, NULL, 'H'},        {"zero-copy-send", required_argument, NULL, 'z'},
	{"zero-copy-min-kib", required_argument, NULL, 'Z'}, {"log-level", required_argument, NULL, 'l'},
	{"log-format", required_argument, NULL, 'f'},    {"version", no_argument, NULL, 'v'},
	{"help", no_argument, NULL, 'h'},                {0},
};

static void usage_error(const char *what)
{
	fprintf(stderr, "nvmet-p2p-dataplane: %s\n%s", what, usage_text);
	exit(2);
}

static uint64_t number(const char *text, uint64_t max)
{
	char *end;

	errno = 0;
	uint64_t value = strtoull(text, &end, 10);

	if (errno || *end || *text < '0' || *text > '9' || value > max)
		usage_error("a number that is none, or out of range");
	return value;
}

static enum dp_zero_copy zero_copy_mode(const char *text)
{
	if (strcmp(text, "off") == 0)
		return DP_ZERO_COPY_OFF;
	if (strcmp(text, "always") == 0)
		return DP_ZERO_COPY_ALWAYS;
	if (strcmp(text, "auto") != 0)
		usage_error("--zero-copy-send: auto, off or always");
	return DP_ZERO_COPY_AUTO;
}

static void parse_option(int option)
{
	switch (option) {
	case 'r':
		settings.rpc_socket = optarg;
		break;
	case 'c':
		settings.channel_fd = number(optarg, INT32_MAX);
		break;
	case 'C':
		settings.channel_socket = optarg;
		break;
	case 'k':
		settings.keep = true;
		break;
	case 'a':
		settings.activity_fd = number(optarg, INT32_MAX);
		break;
	case 'm':
		settings.cpumask = optarg;
		break;
	case 's':
		settings.spin_us = number(optarg, SPIN_US_MAX);
		break;
	case 'p':
		settings.pool_mib = number(optarg, POOL_MIB_MAX);
		break;
	case 'H':
		settings.no_hugepages = true;
		break;
	case 'z':
		settings.zero_copy = zero_copy_mode(optarg);
		break;
	case 'Z':
		settings.zero_copy_min_kib = number(optarg, ZERO_COPY_KIB_MAX);
		break;
	case 'l':
		settings.log_level = optarg;
		break;
	case 'f':
		settings.log_format = optarg;
		break;
	case 'v':
		printf("nvmet-p2p-dataplane " DP_VERSION "%s%s\n", dp_spdk_built() ? " with " : "",
		       dp_spdk_built() ? dp_spdk_version() : "");
		exit(0);
	case 'h':
		fputs(usage_text, stdout);
		exit(0);
	default:
		usage_error("an option that there is not, or without its value");
	}
}

static void parse_options(int argc, char **argv)
{
	int option;

	while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1)
		parse_option(option);
	if (optind != argc)
		usage_error("it takes options only");
	if (!settings.rpc_socket)
		usage_error("--rpc-socket is missing");
	if ((settings.channel_fd == UINT64_MAX) == !settings.channel_socket)
		usage_error("exactly one of --channel-fd and --channel-socket");
	if (!log_configure(settings.log_level, settings.log_format))
		usage_error("an unknown log level or format");
}

/* -- the end --------------------------------------------------------------------------------------------------------- */

static void stopped(void *arg, int rc)
{
	(void)arg;
	log_info("process.stopped", "%s", rc < 0 ? strerror(-rc) : "drained");
	loop_quit();
}

static void stop(const char *why)
{
	if (stopping)
		return;
	stopping = true;
	log_info("process.stopping", "%s", why);
	sd_notify_send("STOPPING=1");
	alarm(DRAIN_S);
	dp_rdma_reset();
	dp_stop(stopped, NULL);
}

static void signalled(struct loop_source *source, uint32_t events)
{
	struct signalfd_siginfo info;

	(void)events;
	if (read(source->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return;
	if (info.ssi_signo == SIGALRM) {
		log_error("process.stuck", "I/O did not end within %d s", DRAIN_S);
		_exit(3);
	}
	stop(strsignal((int)info.ssi_signo));
}

static int watch_signals(void)
{
	static struct loop_source source;
	sigset_t wanted;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGTERM);
	sigaddset(&wanted, SIGINT);
	sigaddset(&wanted, SIGALRM);
	sigprocmask(SIG_BLOCK, &wanted, NULL); /* the reactors' threads, started later, inherit this */
	source = (struct loop_source){.fd = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK), .ready = signalled};
	return source.fd < 0 ? -errno : loop_add(&source, EPOLLIN);
}

static void reset(dp_done_fn done, void *arg)
{
	dp_rdma_reset();
	rpc_view_reset(done, arg);
}

static void control_plane_lost(const char *why)
{
	dp_rdma_reset(); /* nobody answers an admin command any more */
	log_warning("channel.lost", "the control plane is gone: %s", why);
	if (settings.channel_fd != UINT64_MAX && !settings.keep)
		stop("nobody can reach this process any more");
}

/* -- the beginning --------------------------------------------------------------------------------------------------- */

static void bdev_changed(const char *name, const struct dp_bdev_facts *facts)
{
	if (!facts)
		log_error("bdev.lost", "%s: its file or device is gone", name);
	else if (facts->flush_failed)
		log_error("bdev.flush_failed", "%s: what hosts wrote could not be made durable; Flush and FUA fail until a rescan", name);
	else
		log_info("bdev.changed", "%s: %" PRIu64 " blocks of %u bytes", name, facts->num_blocks, facts->block_size);
	rpc_bdev_changed(name, facts);
	channel_bdev_changed(name, facts != NULL);
}

static void pool_lost(const char *name, const char *why)
{
	log_error("pool.lost", "%s: %s; data rests in host memory from now on", name, why);
	channel_pool_lost(name, why);
}

static void look(struct loop_source *source, uint32_t events)
{
	uint64_t times;

	(void)events;
	if (read(source->fd, &times, sizeof(times)) == (ssize_t)sizeof(times) && !stopping) {
		dp_bdev_check();
		dp_pool_check();
	}
}

static int watch_bdevs(void)
{
	static struct loop_source source;
	const struct itimerspec every = {{.tv_sec = BDEV_CHECK_S}, {.tv_sec = BDEV_CHECK_S}};

	source = (struct loop_source){.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), .ready = look};
	if (source.fd < 0 || timerfd_settime(source.fd, 0, &every, NULL) < 0)
		return -errno;
	return loop_add(&source, EPOLLIN);
}

static const struct dp_events events = {
	.queue_closed = channel_queue_closed,
	.upcall = channel_upcall,
	.bdev_changed = bdev_changed,
	.pool_lost = pool_lost,
};

/* The counters' memory: inherited, or our own and then given away with HELLO. The descriptor stays open. */
static volatile uint64_t *map_activity(int *fd)
{
	const size_t size = ACTIVITY_SLOTS * sizeof(uint64_t);
	struct stat found;
	void *memory;

	if (settings.activity_fd != UINT64_MAX) {
		*fd = (int)settings.activity_fd;
	} else {
		*fd = memfd_create("nvmet-p2p activity", MFD_CLOEXEC);
		if (*fd < 0 || ftruncate(*fd, (off_t)size) < 0)
			return NULL;
	}
	if (fstat(*fd, &found) < 0 || (size_t)found.st_size < size)
		return NULL;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	return memory == MAP_FAILED ? NULL : memory;
}

static void fatal(const char *what, const char *why)
{
	log_error("process.failed", "%s: %s", what, why);
	exit(1);
}

static void open_channel(int activity_fd)
{
	const struct channel_options channel = {
		.rpc_socket = settings.rpc_socket,
		.activity_fd = settings.activity_fd == UINT64_MAX ? activity_fd : -1,
		.activity_slots = ACTIVITY_SLOTS,
		.reset = reset,
		.lost = control_plane_lost,
	};
	char err[DP_ERR_MAX] = "";
	int rc = settings.channel_socket ? channel_listen(settings.channel_socket, &channel, err)
					 : channel_open_fd((int)settings.channel_fd, &channel);

	if (rc < 0)
		fatal("capsule channel", *err ? err : strerror(-rc));
}

int main(int argc, char **argv)
{
	char err[DP_ERR_MAX] = "";
	int activity_fd = -1, rc;

	parse_options(argc, argv);
	if (loop_open() < 0 || watch_signals() < 0 || watch_bdevs() < 0)
		fatal("event loop", strerror(errno));
	const struct dp_options options = {
		.cpumask = settings.cpumask,
		.spin_us = (uint32_t)settings.spin_us,
		.pool_bytes = settings.pool_mib << 20,
		.hugepages = !settings.no_hugepages,
		.zero_copy = settings.zero_copy,
		.zero_copy_min = (uint32_t)settings.zero_copy_min_kib << 10,
		.post = loop_post,
		.events = &events,
		.activity = map_activity(&activity_fd),
		.activity_slots = ACTIVITY_SLOTS,
	};

	if (!options.activity)
		fatal("activity counters", errno ? strerror(errno) : "the memory is too small");
	rc = dp_start(&options, err);
	if (rc < 0)
		fatal("engine", *err ? err : strerror(-rc));
	rc = rpc_listen(settings.rpc_socket, rpc_methods, err);
	if (rc < 0)
		fatal("JSON-RPC", err);
	dp_rdma_init(&channel_rdma_events);
	open_channel(activity_fd);
	log_info("process.serving", "JSON-RPC at %s", settings.rpc_socket);
	sd_notify_send("READY=1");
	loop_run();
	channel_close();
	if (settings.channel_socket)
		unlink(settings.channel_socket);
	rpc_close();
	rpc_bdev_forget_all();
	rpc_spdk_forget_all();
	loop_close();
	dp_rdma_fini();
	return 0;
}
