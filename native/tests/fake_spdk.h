/* SPDX-License-Identifier: BSD-3-Clause
 *
 * fake_spdk.h: in place of SPDK one controller with two good namespaces (1: 512 byte blocks, 2: 4096) and one with metadata
 * (3), in memory. It aborts when a queue pair is used by a thread that does not own it, when a device with DMA is given
 * memory that it does not reach, or when something is used after it was freed.
 */
#pragma once

#include <spdk/nvme.h>
#include <stdatomic.h>

#define FAKE_BLOCKS 4096u
#define FAKE_NS 4u

/* Written by tests between operations, read by all threads. */
struct fake_spdk {
	_Atomic bool absent;      /* connecting fails */
	_Atomic bool no_dma;      /* memory has no address for drives */
	_Atomic bool hold;        /* commands stay in the drive */
	_Atomic bool broken;      /* I/O queue pairs answer -ENXIO until a reset */
	_Atomic bool admin_broken;
	_Atomic unsigned admin_lost; /* so many times the admin queue is lost with a command in it, which ends later */
	_Atomic bool fatal;       /* CSTS.CFS */
	_Atomic unsigned reconnects_fail; /* so many */
	_Atomic unsigned allocs_fail;
	_Atomic unsigned room;    /* commands that a queue pair takes; 0: any number */
	_Atomic unsigned status, statuses; /* the next so many I/O commands end with that (sct << 8 | sc, 1 << 16: DNR) */
	_Atomic bool refuse_zeroes;
	_Atomic bool time_out;    /* the next poll of a queue pair with a command calls the timeout callback */
	_Atomic bool refuse_aborts;
	_Atomic unsigned io_queues; /* that the controller grants */
	_Atomic unsigned active;  /* bit mask of namespaces */
	_Atomic bool event;       /* namespace attributes have changed */
	_Atomic uint8_t drive;    /* in its serial number */
	_Atomic uint8_t volume;   /* in the NGUID of namespace 2 and more; 1 has none */
	_Atomic uint8_t eui64;    /* of namespace 1; 0: it has none either */

	_Atomic unsigned in_drive, reads, writes, zeroes, flushes, unmaps, raws, fua, deac, sgls, aborts, resets, qpairs, connects,
		detaches;
	uint8_t *disk[FAKE_NS + 1];
};

extern struct fake_spdk fake;
void fake_reset(void);
