/* SPDX-License-Identifier: BSD-3-Clause */
#include "cpumask.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int refuse(const char *text, char err[256])
{
	snprintf(err, 256, "cpumask %.100s is neither a hexadecimal mask nor a list such as [0,2-3]", text);
	return -EINVAL;
}

static int parse_list(const char *text, int *cpus, int max, char err[256])
{
	const char *p = text + 1;
	int n = 0;

	while (*p != ']') {
		char *end;
		long from = strtol(p, &end, 10), to = from;

		if (end == p)
			return refuse(text, err);
		p = end;
		if (*p == '-') {
			to = strtol(p + 1, &end, 10);
			if (end == p + 1)
				return refuse(text, err);
			p = end;
		}
		if (from < 0 || to < from || to >= 1024 || (*p != ',' && *p != ']'))
			return refuse(text, err);
		for (; from <= to; from++) {
			if (n == max)
				return refuse(text, err);
			cpus[n++] = (int)from;
		}
		if (*p == ',')
			p++;
	}
	return n && !p[1] ? n : refuse(text, err);
}

int cpumask_parse(const char *text, int *cpus, int max, char err[256])
{
	const char *p = text;
	int n = 0, bit = 0;

	if (*text == '[')
		return strchr(text, ']') ? parse_list(text, cpus, max, err) : refuse(text, err);
	if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X'))
		p += 2;
	if (!*p)
		return refuse(text, err);
	for (const char *q = p; *q; q++)
		if (!isxdigit((unsigned char)*q))
			return refuse(text, err);
	for (const char *q = p + strlen(p); q-- > p; bit += 4) {
		const char digit[2] = { *q, 0 };
		unsigned long value = strtoul(digit, NULL, 16);

		for (int i = 0; i < 4; i++)
			if (value >> i & 1) {
				if (n == max)
					return refuse(text, err);
				cpus[n++] = bit + i;
			}
	}
	return n ? n : refuse(text, err);
}
