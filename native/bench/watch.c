/* SPDX-License-Identifier: BSD-3-Clause
 *
 * watch.c: CPU time of other processes over the measured time (--watch-pids), from /proc/PID/task/TID/schedstat.
 */
#include <dirent.h>
#include <stdio.h>

#include "bench.h"

static uint64_t process_ns(int pid)
{
	char path[300];
	uint64_t total = 0;
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	DIR *tasks = opendir(path);
	if (tasks == NULL) {
		bench_fail(EXIT_RUN_FAILED, "--watch-pids: process %d: %m", pid);
		return 0;
	}
	for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
		unsigned long long ns = 0;
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%.20s/schedstat", pid, entry->d_name);
		FILE *file = fopen(path, "re");
		if (file != NULL && fscanf(file, "%llu", &ns) == 1)
			total += ns;
		if (file != NULL)
			fclose(file);
	}
	closedir(tasks);
	return total;
}

static uint64_t sum(void)
{
	uint64_t total = 0;
	for (unsigned i = 0; i < bench.opt.watch_count; i++)
		total += process_ns(bench.opt.watch[i]);
	return total;
}

uint64_t watch_step(uint64_t now)
{
	struct watch *watch = &bench.watch;
	if (bench.opt.watch_count == 0)
		return UINT64_MAX;
	if (watch->begun_ns == 0 && now >= bench.measure_ns) {
		watch->begun_cpu_ns = sum();
		watch->begun_ns = now;
	} else if (watch->begun_ns != 0 && watch->ended_ns == 0 && now >= bench.end_ns) {
		watch_end();
	}
	if (watch->begun_ns == 0)
		return bench.measure_ns;
	return watch->ended_ns == 0 ? bench.end_ns : UINT64_MAX;
}

void watch_end(void)
{
	struct watch *watch = &bench.watch;
	if (watch->begun_ns == 0 || watch->ended_ns != 0)
		return;
	watch->ended_ns = now_ns();
	watch->cpu_ns = sum() - watch->begun_cpu_ns;
}
