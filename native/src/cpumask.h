/* SPDX-License-Identifier: BSD-3-Clause */
#pragma once

/* SPDK's -m: a hexadecimal mask ("0x3", "3") or a list ("[0,2-3]"). The number of CPUs written to cpus, or -EINVAL. */
int cpumask_parse(const char *text, int *cpus, int max, char err[256]);
