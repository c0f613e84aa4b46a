/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rpc_framing.h: where a JSON object or array ends on a stream that has no delimiters (SPDK's wire form). It looks at
 * each byte once, and only at what matters for that: strings and brackets. Whether it is JSON, jansson says.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define RPC_DEPTH_MAX 32 /* also the bound of jansson's recursion */

struct rpc_framing {
	unsigned depth;
	bool in_string, escaped;
};

/*
 * Looks at further bytes. > 0: the value ends with that many of them, and the state is that of a new stream; 0: all of
 * them are looked at and the value goes on; -1: this is no object and no array, or it is nested too deeply.
 */
ssize_t rpc_framing_scan(struct rpc_framing *state, const char *data, size_t len);
