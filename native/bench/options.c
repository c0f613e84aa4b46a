/* SPDX-License-Identifier: BSD-3-Clause */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "rdma.h"

static const char HELP[] =
	"Usage: nvmet-p2p-bench --subnqn NQN [options]\n"
	"\n"
	"Loads a namespace of an NVMe/TCP or NVMe/RDMA target and measures. Writing workloads destroy its data.\n"
	"\n"
	"Target      --traddr ADDR [127.0.0.1]  --trsvcid PORT [4420]  --subnqn NQN  --nsid N [the first]\n"
	"            --trtype tcp|rdma [tcp]  --hostnqn NQN [a random one]  --hostid UUID [random]\n"
	"Workload    --rw read|write|rw|randread|randwrite|randrw [randread]\n"
	"            --rwmix PERCENT      reads of rw and randrw [50]\n"
	"            --bs BYTES           block size, k and m allowed [4k]\n"
	"            --depth N            commands outstanding on each queue [32]\n"
	"            --queues N           I/O queues [1]\n"
	"            --lba-start N, --lba-count N [the whole namespace]\n"
	"            --seed N [1]\n"
	"Length      --time SECONDS [5]  --warmup SECONDS [0.5], not counted; or --count N, the I/Os of all queues\n"
	"Threads     --cpus LIST          one thread on each, as 1 or 0,2-3\n"
	"            --threads N          without pinning [1]\n"
	"            --poll               never sleep;  --spin-us N: only so long after work [0]\n"
	"Transport   --no-icd             no write data in the capsule: by R2T, or RDMA READ, only\n"
	"            --disable-sqflow     TCP: lets the target end reads by the SUCCESS flag\n"
	"            --queue-size N       entries [depth + 1]\n"
	"TCP         --hdgst, --ddgst     header and data digests\n"
	"            --hpda N, --maxr2t N as in ICReq [0]\n"
	"            --discard            leave large data of reads in the kernel (not with --ddgst or --verify)\n"
	"            --congestion NAME    of the host's own sockets, as cubic [the system's]\n"
	"            --kato MS [15000]    --timeout SECONDS [10]\n"
	"Result      --json FILE          - is standard output, which then has nothing else\n"
	"            --verify             write patterns, read them back, compare; all that was written again at the end\n"
	"            --watch-pids LIST    CPU time of these processes meanwhile\n"
	"            --quiet              no table\n"
	"\n"
	"Exit status: 0 done, 1 failed, 2 wrong options, 3 verify found wrong data, 4 interrupted.\n";

enum {
	O_TRADDR = 256, O_TRTYPE, O_TRSVCID, O_SUBNQN, O_HOSTNQN, O_HOSTID, O_NSID, O_RW, O_RWMIX, O_BS, O_DEPTH, O_QUEUES, O_LBA_START,
	O_LBA_COUNT, O_SEED, O_TIME, O_WARMUP, O_COUNT, O_CPUS, O_THREADS, O_POLL, O_SPIN, O_HDGST, O_DDGST, O_NO_ICD,
	O_SQFLOW, O_QUEUE_SIZE, O_HPDA, O_MAXR2T, O_DISCARD, O_KATO, O_TIMEOUT, O_JSON, O_VERIFY, O_QUIET, O_WATCH, O_CONGESTION, O_HELP, O_VERSION,
};

#define NEEDS required_argument
static const struct option LONG[] = {
	{"traddr", NEEDS, 0, O_TRADDR}, {"trtype", NEEDS, 0, O_TRTYPE}, {"trsvcid", NEEDS, 0, O_TRSVCID}, {"subnqn", NEEDS, 0, O_SUBNQN},
	{"hostnqn", NEEDS, 0, O_HOSTNQN}, {"hostid", NEEDS, 0, O_HOSTID}, {"nsid", NEEDS, 0, O_NSID},
	{"rw", NEEDS, 0, O_RW}, {"rwmix", NEEDS, 0, O_RWMIX}, {"bs", NEEDS, 0, O_BS}, {"depth", NEEDS, 0, O_DEPTH},
	{"queues", NEEDS, 0, O_QUEUES}, {"lba-start", NEEDS, 0, O_LBA_START}, {"lba-count", NEEDS, 0, O_LBA_COUNT},
	{"seed", NEEDS, 0, O_SEED}, {"time", NEEDS, 0, O_TIME}, {"warmup", NEEDS, 0, O_WARMUP},
	{"count", NEEDS, 0, O_COUNT}, {"cpus", NEEDS, 0, O_CPUS}, {"threads", NEEDS, 0, O_THREADS},
	{"poll", no_argument, 0, O_POLL}, {"spin-us", NEEDS, 0, O_SPIN}, {"hdgst", no_argument, 0, O_HDGST},
	{"ddgst", no_argument, 0, O_DDGST}, {"no-icd", no_argument, 0, O_NO_ICD},
	{"disable-sqflow", no_argument, 0, O_SQFLOW}, {"queue-size", NEEDS, 0, O_QUEUE_SIZE},
	{"hpda", NEEDS, 0, O_HPDA}, {"maxr2t", NEEDS, 0, O_MAXR2T}, {"discard", no_argument, 0, O_DISCARD},
	{"congestion", NEEDS, 0, O_CONGESTION},
	{"watch-pids", NEEDS, 0, O_WATCH}, {"kato", NEEDS, 0, O_KATO}, {"timeout", NEEDS, 0, O_TIMEOUT}, {"json", NEEDS, 0, O_JSON},
	{"verify", no_argument, 0, O_VERIFY}, {"quiet", no_argument, 0, O_QUIET}, {"help", no_argument, 0, O_HELP},
	{"version", no_argument, 0, O_VERSION}, {0},
};

__attribute__((noreturn, format(printf, 1, 2))) static void usage(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	fprintf(stderr, "nvmet-p2p-bench: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	exit(EXIT_USAGE);
}

static uint64_t number(const char *name, const char *text, uint64_t min, uint64_t max)
{
	char *end;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 0);
	unsigned shift = *end == 'k' || *end == 'K' ? 10 : *end == 'm' || *end == 'M' ? 20 : 0;
	if (shift)
		end++;
	if (errno || end == text || *end || strchr(text, '-') || value > UINT64_MAX >> shift ||
	    value << shift < min || value << shift > max)
		usage("--%s %s: a number from %llu to %llu is wanted", name, text, (unsigned long long)min,
		      (unsigned long long)max);
	return value << shift;
}

static uint64_t seconds(const char *name, const char *text)
{
	char *end;
	double value = strtod(text, &end);
	if (end == text || *end || !(value >= 0) || value > 1e6)
		usage("--%s %s: a number of seconds is wanted", name, text);
	return (uint64_t)(value * (double)NSEC);
}

static const char *nqn(const char *name, const char *text)
{
	if (strlen(text) < 1 || strlen(text) > NQN_MAX)
		usage("--%s: an NQN has 1 to %d bytes", name, NQN_MAX);
	return text;
}

static void parse_uuid(uint8_t id[16], const char *text)
{
	unsigned digits = 0;
	for (const char *at = text; *at; at++) {
		if (*at == '-')
			continue;
		if (!isxdigit((unsigned char)*at) || digits == 32)
			usage("--hostid %s: not a UUID", text);
		unsigned value = isdigit((unsigned char)*at) ? (unsigned)(*at - '0')
							      : (unsigned)(tolower((unsigned char)*at) - 'a' + 10);
		id[digits / 2] = (uint8_t)(id[digits / 2] << 4 | value);
		digits++;
	}
	if (digits != 32)
		usage("--hostid %s: not a UUID", text);
}

static void parse_pids(struct options *opt, const char *text)
{
	const char *at = text;
	for (opt->watch_count = 0; *at && opt->watch_count < WATCH_MAX;) {
		char *end;
		unsigned long pid = strtoul(at, &end, 10);
		if (end == at || pid == 0 || pid > INT32_MAX || (*end && *end != ','))
			break;
		opt->watch[opt->watch_count++] = (int)pid;
		at = *end ? end + 1 : end;
	}
	if (*at || opt->watch_count == 0)
		usage("--watch-pids %s: a list as 12,34 is wanted", text);
}

static void parse_cpus(struct options *opt, const char *text)
{
	const char *at = text;
	opt->cpu_count = 0;
	while (*at) {
		char *end;
		unsigned long first = strtoul(at, &end, 10), last = first;
		if (end == at)
			break;
		if (*end == '-') {
			at = end + 1;
			last = strtoul(at, &end, 10);
		}
		if (end == at || last < first || last >= CPU_SETSIZE || opt->cpu_count + last - first >= CPUS_MAX)
			break;
		for (unsigned long cpu = first; cpu <= last; cpu++)
			opt->cpus[opt->cpu_count++] = (int)cpu;
		at = *end == ',' ? end + 1 : end;
		if (*end && *end != ',')
			break;
	}
	if (*at || opt->cpu_count == 0)
		usage("--cpus %s: a list as 0,2-3 is wanted", text);
}

static void parse_rw(struct options *opt, const char *text)
{
	opt->random = strncmp(text, "rand", 4) == 0;
	const char *kind = text + (opt->random ? 4 : 0);
	if (strcmp(kind, "read") == 0)
		opt->read_percent = 100;
	else if (strcmp(kind, "write") == 0)
		opt->read_percent = 0;
	else if (strcmp(kind, "rw") == 0)
		opt->read_percent = UINT32_MAX; /* --rwmix decides */
	else
		usage("--rw %s: read, write, rw, randread, randwrite or randrw is wanted", text);
}

static void parse_trtype(struct options *opt, const char *text)
{
	opt->rdma = strcasecmp(text, "rdma") == 0;
	if (!opt->rdma && strcasecmp(text, "tcp") != 0)
		usage("--trtype %s: tcp or rdma is wanted", text);
	if (opt->rdma && !rdma_built())
		usage("--trtype rdma: this nvmet-p2p-bench is built without librdmacm");
}

static void parse_flag(struct options *opt, int which)
{
	switch (which) {
	case O_POLL: opt->poll = true; break;
	case O_HDGST: opt->hdgst = true; break;
	case O_DDGST: opt->ddgst = true; break;
	case O_NO_ICD: opt->no_icd = true; break;
	case O_SQFLOW: opt->disable_sqflow = true; break;
	case O_DISCARD: opt->discard = true; break;
	case O_VERIFY: opt->verify = true; break;
	case O_QUIET: opt->quiet = true; break;
	case O_HELP: fputs(HELP, stdout); exit(0);
	case O_VERSION: printf("nvmet-p2p-bench %s\n", DP_VERSION); exit(0);
	default: usage("try --help");
	}
}

static void parse_one(struct options *opt, int which, const char *name, const char *arg, unsigned *rwmix)
{
	switch (which) {
	case O_TRADDR: opt->traddr = arg; break;
	case O_TRTYPE: parse_trtype(opt, arg); break;
	case O_TRSVCID: opt->trsvcid = arg; break;
	case O_SUBNQN: opt->subnqn = nqn(name, arg); break;
	case O_HOSTNQN: opt->hostnqn = nqn(name, arg); break;
	case O_HOSTID: parse_uuid(opt->hostid, arg); break;
	case O_NSID: opt->nsid = (uint32_t)number(name, arg, 1, UINT32_MAX - 1); break;
	case O_RW: parse_rw(opt, arg); break;
	case O_RWMIX: *rwmix = (unsigned)number(name, arg, 0, 100); break;
	case O_BS: opt->bs = (uint32_t)number(name, arg, 512, BS_MAX); break;
	case O_DEPTH: opt->depth = (uint32_t)number(name, arg, 1, DEPTH_MAX); break;
	case O_QUEUES: opt->queues = (uint32_t)number(name, arg, 1, QUEUES_MAX); break;
	case O_LBA_START: opt->lba_start = number(name, arg, 0, UINT64_MAX); break;
	case O_LBA_COUNT: opt->lba_count = number(name, arg, 1, UINT64_MAX); break;
	case O_SEED: opt->seed = number(name, arg, 0, UINT64_MAX); break;
	case O_TIME: opt->time_ns = seconds(name, arg); break;
	case O_WARMUP: opt->warmup_ns = seconds(name, arg); break;
	case O_COUNT: opt->count = number(name, arg, 1, UINT64_MAX - 1); break;
	case O_CPUS: parse_cpus(opt, arg); break;
	case O_THREADS: opt->threads = (uint32_t)number(name, arg, 1, CPUS_MAX); break;
	case O_SPIN: opt->spin_us = (uint32_t)number(name, arg, 0, 1000000); break;
	case O_QUEUE_SIZE: opt->queue_size = (uint32_t)number(name, arg, 2, 65536); break;
	case O_HPDA: opt->hpda = (uint8_t)number(name, arg, 0, 31); break;
	case O_MAXR2T: opt->maxr2t = (uint32_t)number(name, arg, 0, 63); break;
	case O_KATO: opt->kato_ms = (uint32_t)number(name, arg, 0, 3600000); break;
	case O_TIMEOUT: opt->timeout_ns = seconds(name, arg); break;
	case O_CONGESTION: opt->congestion = arg; break;
	case O_JSON: opt->json = arg; break;
	case O_WATCH: parse_pids(opt, arg); break;
	default: parse_flag(opt, which);
	}
}

/* A host of its own, unless one is given: RFC 4122 version 4. */
static void random_host(struct options *opt)
{
	static char name[NQN_MAX + 1];
	static const uint8_t none[16];
	uint8_t *id = opt->hostid;
	if (memcmp(id, none, 16) == 0) {
		if (getrandom(id, 16, 0) != 16)
			usage("getrandom: %m");
		id[6] = (uint8_t)((id[6] & 0x0F) | 0x40);
		id[8] = (uint8_t)((id[8] & 0x3F) | 0x80);
	}
	if (opt->hostnqn != NULL)
		return;
	snprintf(name, sizeof(name),
		 "nqn.2014-08.org.nvmexpress:uuid:"
		 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		 id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7], id[8], id[9], id[10], id[11], id[12], id[13],
		 id[14], id[15]);
	opt->hostnqn = name;
}

void options_parse(struct options *opt, int argc, char **argv)
{
	unsigned rwmix = 50;
	*opt = (struct options){
		.traddr = "127.0.0.1", .trsvcid = "4420", .read_percent = 100, .random = true, .bs = 4096, .depth = 32,
		.queues = 1, .time_ns = 5 * NSEC, .warmup_ns = NSEC / 2, .timeout_ns = 10 * NSEC, .kato_ms = 15000, .seed = 1,
	};
	for (int which, index = 0; (which = getopt_long(argc, argv, "", LONG, &index)) != -1;) {
		if (which == '?')
			usage("try --help");
		parse_one(opt, which, LONG[index].name, optarg, &rwmix);
	}
	if (optind < argc)
		usage("%s: try --help", argv[optind]);
	if (opt->subnqn == NULL)
		usage("--subnqn is missing");
	if (opt->read_percent > 100)
		opt->read_percent = rwmix;
	if (opt->cpu_count)
		opt->threads = opt->cpu_count;
	if (opt->threads == 0)
		opt->threads = 1;
	if (opt->threads > opt->queues)
		usage("%u threads for %u queues", opt->threads, opt->queues);
	if (opt->queue_size && opt->queue_size <= opt->depth)
		usage("--queue-size %u: depth %u needs %u entries", opt->queue_size, opt->depth, opt->depth + 1);
	if (opt->rdma && (opt->hdgst || opt->ddgst || opt->hpda || opt->maxr2t || opt->discard || opt->congestion != NULL))
		usage("--hdgst, --ddgst, --hpda, --maxr2t, --discard and --congestion are of TCP");
	if (opt->rdma && opt->queue_size > UINT16_MAX)
		usage("--queue-size %u: at most %u over RDMA", opt->queue_size, UINT16_MAX);
	if (opt->verify && opt->read_percent == 100)
		usage("--verify needs a workload that writes, as randrw");
	if (opt->count)
		opt->warmup_ns = 0;
	if (opt->timeout_ns == 0)
		usage("--timeout: more than 0 is wanted");
	random_host(opt);
}
