/* SPDX-License-Identifier: BSD-3-Clause */
#include "rpc_framing.h"

static bool is_space(char c)
{
	return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

ssize_t rpc_framing_scan(struct rpc_framing *state, const char *data, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		const char c = data[i];

		if (state->in_string) {
			if (state->escaped)
				state->escaped = false;
			else if (c == '\\')
				state->escaped = true;
			else if (c == '"')
				state->in_string = false;
		} else if (c == '{' || c == '[') {
			if (++state->depth > RPC_DEPTH_MAX)
				return -1;
		} else if (state->depth == 0) {
			if (!is_space(c))
				return -1;
		} else if (c == '"') {
			state->in_string = true;
		} else if ((c == '}' || c == ']') && --state->depth == 0) {
			return (ssize_t)i + 1;
		}
	}
	return 0;
}
