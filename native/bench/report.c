/* SPDX-License-Identifier: BSD-3-Clause
 *
 * report.c: a table for people, JSON for programs. Latencies in microseconds.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"

static const struct {
	const char *name;
	double percent;
} PERCENTILES[] = {{"p50", 50}, {"p90", 90}, {"p99", 99}, {"p99_9", 99.9}, {"p99_99", 99.99}};

static const char *const OP_NAMES[] = {"read", "write"};

static double elapsed_s(const struct stats *stats)
{
	uint64_t end = bench.end_ns;
	if (bench.opt.count)
		end = stats->last_ns;
	if (bench.stopped_ns && (bench.stopped_ns < end || end == 0))
		end = bench.stopped_ns;
	return end > bench.measure_ns && bench.measure_ns ? (double)(end - bench.measure_ns) / (double)NSEC : 0;
}

static json_t *latency(const struct hist *hist)
{
	json_t *to = json_pack("{s:f, s:f}", "mean", hist_mean(hist) / 1e3, "min",
			       hist->count ? (double)hist->min / 1e3 : 0.0);
	for (size_t i = 0; i < sizeof(PERCENTILES) / sizeof(PERCENTILES[0]); i++)
		json_object_set_new(to, PERCENTILES[i].name,
				    json_real(hist_percentile(hist, PERCENTILES[i].percent) / 1e3));
	json_object_set_new(to, "max", json_real((double)hist->max / 1e3));
	return to;
}

/* [[first value of the bucket, count] ...] */
static json_t *buckets(const struct hist *hist)
{
	json_t *list = json_array();
	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		if (hist->bucket[i])
			json_array_append_new(list, json_pack("[f, I]", (double)hist_low(i) / 1e3,
							      (json_int_t)hist->bucket[i]));
	return list;
}

static json_t *result(uint64_t ios, const struct hist *hist, double seconds, bool with_buckets)
{
	double iops = seconds > 0 ? (double)ios / seconds : 0;
	json_t *to = json_pack("{s:I, s:f, s:f, s:o}", "ios", (json_int_t)ios, "iops", iops, "mib_s",
			       iops * bench.opt.bs / (1 << 20), "latency_us", latency(hist));
	if (with_buckets)
		json_object_set_new(to, "histogram_us", buckets(hist));
	return to;
}

static json_t *target_json(void)
{
	const struct target *t = &bench.target;
	const struct params *p = &bench.admin.params;
	return json_pack("{s:s, s:s, s:s, s:s, s:i, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "trtype",
			 bench.opt.rdma ? "rdma" : "tcp", "traddr", bench.opt.traddr, "trsvcid", bench.opt.trsvcid, "subnqn", bench.opt.subnqn, "cntlid", t->cntlid,
			 "model", t->model, "serial", t->serial, "firmware", t->firmware, "nsid", (json_int_t)t->nsid,
			 "lba_size", (json_int_t)t->lba_size, "lbas", (json_int_t)t->blocks, "in_capsule_max",
			 (json_int_t)t->icd_max, "transfer_max", (json_int_t)t->transfer_max, "queue_entries_max",
			 (json_int_t)t->entries_max, "maxh2cdata", (json_int_t)p->maxh2cdata);
}

static json_t *options_json(void)
{
	const struct options *o = &bench.opt;
	return json_pack("{s:b, s:i, s:I, s:i, s:i, s:i, s:b, s:b, s:b, s:b, s:b, s:b, s:b, s:i, s:I, s:I, s:I, s:f, s:f, s:s?}",
			 "random", o->random, "read_percent", (int)o->read_percent, "bs", (json_int_t)o->bs, "depth",
			 (int)o->depth, "queues", (int)o->queues, "threads", (int)o->threads, "hdgst", o->hdgst, "ddgst",
			 o->ddgst, "in_capsule", !o->no_icd, "disable_sqflow", o->disable_sqflow, "discard", o->discard,
			 "verify", o->verify, "poll", o->poll, "spin_us", (int)o->spin_us, "lba_start",
			 (json_int_t)o->lba_start, "lba_count", (json_int_t)o->lba_count, "seed", (json_int_t)o->seed,
			 "time_s", (double)o->time_ns / (double)NSEC, "warmup_s", (double)o->warmup_ns / (double)NSEC,
			 "congestion", o->congestion);
}

static json_t *document(const struct stats *stats, const struct hist *both, double seconds)
{
	const struct op_stats *op = stats->op;
	json_t *doc = json_pack(
		"{s:s, s:s, s:o, s:o, s:f, s:b, s:o, s:o, s:o, s:{s:f, s:f}, s:{s:I, s:I, s:I}, s:I, s:I, s:I, s:s?}", "tool",
		"nvmet-p2p-bench", "version", DP_VERSION, "target", target_json(), "options", options_json(), "elapsed_s",
		seconds, "interrupted", (int)bench.interrupted, "total", result(both->count, both, seconds, false), "read",
		result(op[OP_READ].ios, &op[OP_READ].latency, seconds, true), "write",
		result(op[OP_WRITE].ios, &op[OP_WRITE].latency, seconds, true), "cpu", "user_s",
		(double)stats->cpu_user_us / 1e6, "system_s", (double)stats->cpu_system_us / 1e6, "syscalls", "recv",
		(json_int_t)stats->recvs, "send", (json_int_t)stats->sends, "wait", (json_int_t)stats->waits,
		"success_flags", (json_int_t)stats->success_flags, "r2ts", (json_int_t)stats->r2ts, "verified",
		(json_int_t)stats->verified, "error", bench_failure());
	if (bench.opt.watch_count)
		json_object_set_new(doc, "watched_cpu_s", json_real((double)bench.watch.cpu_ns / (double)NSEC));
	if (doc == NULL) {
		fprintf(stderr, "nvmet-p2p-bench: the result cannot be written as JSON\n");
		exit(EXIT_RUN_FAILED);
	}
	return doc;
}

static void row(const char *name, uint64_t ios, const struct hist *hist, double seconds)
{
	double iops = seconds > 0 ? (double)ios / seconds : 0;
	printf("%-6s %10.0f %9.1f %9.1f", name, iops, iops * bench.opt.bs / (1 << 20), hist_mean(hist) / 1e3);
	for (size_t i = 0; i < sizeof(PERCENTILES) / sizeof(PERCENTILES[0]); i++)
		printf(" %9.1f", hist_percentile(hist, PERCENTILES[i].percent) / 1e3);
	printf(" %9.1f\n", (double)hist->max / 1e3);
}

static void table(const struct stats *stats, const struct hist *both, double seconds)
{
	printf("%s, %s, NSID %u: %u B, depth %u, %u queue%s, %.2f s\n", bench.target.model, bench.opt.subnqn,
	       bench.target.nsid, bench.opt.bs, bench.opt.depth, bench.opt.queues, bench.opt.queues > 1 ? "s" : "", seconds);
	printf("%-6s %10s %9s %9s %9s %9s %9s %9s %9s %9s  (us)\n", "", "IOPS", "MiB/s", "mean", "p50", "p90", "p99",
	       "p99.9", "p99.99", "max");
	for (int op = 0; op < OP_COUNT; op++)
		if (stats->op[op].ios)
			row(OP_NAMES[op], stats->op[op].ios, &stats->op[op].latency, seconds);
	if (stats->op[OP_READ].ios && stats->op[OP_WRITE].ios)
		row("total", both->count, both, seconds);
	if (bench.opt.watch_count && both->count)
		printf("watched processes: %.2f CPU seconds, %.3f for a million I/Os\n",
		       (double)bench.watch.cpu_ns / (double)NSEC,
		       (double)bench.watch.cpu_ns / (double)NSEC * 1e6 / (double)both->count);
	if (bench.opt.verify)
		printf("verified %llu blocks of %u bytes\n", (unsigned long long)stats->verified, bench.opt.bs);
}

static void save(json_t *doc)
{
	if (json_dump_file(doc, bench.opt.json, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) < 0)
		bench_fail(EXIT_RUN_FAILED, "%s cannot be written", bench.opt.json);
}

void report(const struct stats *stats)
{
	static struct hist both;
	double seconds = elapsed_s(stats);
	bool to_stdout = bench.opt.json != NULL && strcmp(bench.opt.json, "-") == 0;
	hist_init(&both);
	for (int op = 0; op < OP_COUNT; op++)
		hist_merge(&both, &stats->op[op].latency);
	if (bench.opt.json != NULL) {
		json_t *doc = document(stats, &both, seconds);
		if (to_stdout) {
			json_dumpf(doc, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
			putchar('\n');
		} else {
			save(doc);
		}
		json_decref(doc);
	}
	if (!to_stdout && !bench.opt.quiet && both.count)
		table(stats, &both, seconds);
	if (bench_failure() != NULL)
		fprintf(stderr, "nvmet-p2p-bench: %s\n", bench_failure());
}
