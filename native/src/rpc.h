/* SPDX-License-Identifier: BSD-3-Clause
 *
 * rpc.h: the JSON-RPC 2.0 server: requests in, answers out, in any order. A method is a row of a table; its parameters
 * are checked against their own table before its handler is called.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "engine.h"

#define RPC_PARSE_ERROR (-32700)
#define RPC_INVALID_REQUEST (-32600)
#define RPC_METHOD_NOT_FOUND (-32601)
#define RPC_INVALID_PARAMS (-32602)

#define RPC_REQUEST_BYTES_MAX (4u << 20) /* 1,024 namespaces of a controller are under 400 KiB */
#define RPC_PARAMS_SIZE_MAX 512

enum rpc_type { RPC_STRING, RPC_BOOL, RPC_U64, RPC_U32, RPC_U16, RPC_U8, RPC_I32, RPC_ARRAY };

/* Where a parameter goes: const char *, bool, uintN_t, int32_t or const json_t * at offset of the method's structure. */
struct rpc_param {
	const char *name;
	enum rpc_type type;
	size_t offset;
	bool required;
	uint64_t preset; /* of a number that is left out */
};

struct rpc_request;

struct rpc_method {
	const char *name;
	const struct rpc_param *params; /* ends with a NULL name; NULL: none */
	/* Answers now or later, exactly once. params and all in it are gone when it returns. */
	void (*handler)(struct rpc_request *request, const void *params);
};

/* Fills in *out (zeroed here) from an object (NULL: empty). False, with a message, where one is missing or wrong. */
bool rpc_params_decode(const struct rpc_param *table, json_t *params, void *out, char err[DP_ERR_MAX]);

int rpc_listen(const char *path, const struct rpc_method *methods, char err[DP_ERR_MAX]);
void rpc_close(void);

void rpc_reply(struct rpc_request *request, json_t *result); /* takes over the reference; NULL: no memory */
void rpc_fail(struct rpc_request *request, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* rc of the engine: true, or the error. */
void rpc_finish(struct rpc_request *request, int rc, const char *err);
void rpc_finished(void *request, int rc); /* the same, as a dp_done_fn */
