/* SPDX-License-Identifier: BSD-3-Clause
 *
 * workload.c: which command comes next, and whether what came back is right.
 *
 * --verify: each queue has a part of the LBA range for itself, and no two commands are outstanding on one unit, so the
 * generation that a read must find is known. A unit is written before it is read; when the time is over, every unit
 * written is read once more.
 */
#include <stdio.h>
#include <stdlib.h>

#include "pattern.h"
#include "queue.h"

#define PROBES 32 /* random tries for a unit without a command, before looking at them in order */

static uint64_t next_random(struct workload *load)
{
	load->rng += 0x9E3779B97F4A7C15ull;
	return mix64(load->rng);
}

static uint64_t below(struct workload *load, uint64_t limit)
{
	return (uint64_t)((unsigned __int128)next_random(load) * limit >> 64);
}

int workload_init(struct workload *load, unsigned index)
{
	const struct options *opt = &bench.opt;
	uint64_t first = (uint64_t)((unsigned __int128)bench.units * index / opt->queues);
	uint64_t end = (uint64_t)((unsigned __int128)bench.units * (index + 1) / opt->queues);
	*load = (struct workload){.first = first, .units = end - first, .quota = UINT64_MAX};
	load->rng = mix64(opt->seed + 1) ^ mix64(~(uint64_t)index);
	if (opt->count)
		load->quota = opt->count / opt->queues + (index < opt->count % opt->queues);
	if (load->units == 0)
		return bench_fail(EXIT_USAGE, "the LBA range holds fewer units of %u bytes than there are queues",
				  opt->bs);
	if (!opt->verify)
		return 0;
	load->generation = calloc(load->units, sizeof(*load->generation));
	load->locked = calloc(load->units, sizeof(*load->locked));
	if (load->generation == NULL || load->locked == NULL)
		return bench_fail(EXIT_RUN_FAILED, "no memory for the state of %llu units",
				  (unsigned long long)load->units);
	return 0;
}

void workload_free(struct workload *load)
{
	free(load->generation);
	free(load->locked);
}

static uint64_t next_sequential(struct workload *load)
{
	uint64_t unit = load->cursor++;
	if (load->cursor == load->units)
		load->cursor = 0;
	return unit;
}

/* A unit of this queue without a command outstanding; false if there is none. */
static bool find_unlocked(struct workload *load, uint64_t *unit)
{
	for (unsigned i = 0; bench.opt.random && i < PROBES; i++) {
		*unit = below(load, load->units);
		if (!load->locked[*unit])
			return true;
	}
	for (uint64_t i = 0; i < load->units; i++) {
		*unit = next_sequential(load);
		if (!load->locked[*unit])
			return true;
	}
	return false;
}

static bool next_verified(struct workload *load, struct slot *slot)
{
	uint64_t unit;
	slot->op = below(load, 100) < bench.opt.read_percent ? OP_READ : OP_WRITE;
	if (!find_unlocked(load, &unit))
		return false;
	if (slot->op == OP_READ && load->generation[unit] == 0) {
		uint64_t kept = load->written < RECENT_UNITS ? load->written : RECENT_UNITS;
		uint64_t other = kept ? load->recent[below(load, kept)] : 0;
		if (kept && !load->locked[other])
			unit = other;
		else
			slot->op = OP_WRITE;
	}
	load->locked[unit] = 1;
	slot->unit = load->first + unit;
	slot->generation = load->generation[unit] + (slot->op == OP_WRITE);
	if (slot->op == OP_WRITE)
		pattern_fill(slot->data, bench.opt.bs, bench.target.lba_size,
			     bench.opt.lba_start + slot->unit * bench.unit_blocks, slot->generation, bench.opt.seed);
	return true;
}

static bool next_read_back(struct workload *load, struct slot *slot)
{
	while (load->cursor < load->units && load->generation[load->cursor] == 0)
		load->cursor++;
	if (load->cursor == load->units)
		return false;
	slot->op = OP_READ;
	slot->unit = load->first + load->cursor;
	slot->generation = load->generation[load->cursor];
	load->locked[load->cursor++] = 1;
	return true;
}

bool workload_next(struct workload *load, struct slot *slot, uint32_t inflight, uint64_t now)
{
	if (load->phase == PHASE_RUN && (load->quota == 0 || now >= bench.end_ns || bench.stop)) {
		if (inflight > 0)
			return false;
		load->phase = bench.opt.verify && !bench_failed() ? PHASE_READ_BACK : PHASE_DONE;
		load->cursor = 0;
	}
	if (load->phase == PHASE_READ_BACK) {
		if (!bench_failed() && next_read_back(load, slot))
			return true;
		if (inflight == 0)
			load->phase = PHASE_DONE;
		return false;
	}
	if (load->phase == PHASE_DONE)
		return false;
	if (bench.opt.verify) {
		if (!next_verified(load, slot))
			return false;
	} else {
		unsigned percent = bench.opt.read_percent;
		bool read = percent == 100 || (percent > 0 && below(load, 100) < percent);
		slot->op = read ? OP_READ : OP_WRITE;
		slot->unit = bench.opt.random ? below(load, bench.units) : load->first + next_sequential(load);
	}
	if (load->quota != UINT64_MAX)
		load->quota--;
	return true;
}

static int mismatch(const struct slot *slot, const struct pattern_error *error)
{
	return bench_fail(EXIT_MISMATCH,
			  "verify: LBA %llu, byte %u: %#04x read, %#04x expected (generation %u); %u of %u bytes differ; "
			  "the block claims to be LBA %llu, generation %llu; command at LBA %llu",
			  (unsigned long long)error->lba, error->offset, error->found, error->expected,
			  slot->generation, error->differing, bench.target.lba_size,
			  (unsigned long long)error->found_lba, (unsigned long long)error->found_generation,
			  (unsigned long long)(bench.opt.lba_start + slot->unit * bench.unit_blocks));
}

int workload_completed(struct workload *load, struct slot *slot, struct stats *stats)
{
	if (!bench.opt.verify)
		return 0;
	uint64_t unit = slot->unit - load->first;
	load->locked[unit] = 0;
	if (slot->op == OP_WRITE) {
		load->generation[unit] = slot->generation;
		load->recent[load->written++ % RECENT_UNITS] = unit;
		return 0;
	}
	struct pattern_error error;
	stats->verified++;
	if (pattern_check(slot->data, bench.opt.bs, bench.target.lba_size,
			  bench.opt.lba_start + slot->unit * bench.unit_blocks, slot->generation, bench.opt.seed,
			  &error))
		return 0;
	return mismatch(slot, &error);
}
