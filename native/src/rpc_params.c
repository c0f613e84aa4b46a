/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>
#include <string.h>

#include "rpc.h"

static const uint64_t limits[] = {[RPC_U64] = INT64_MAX, [RPC_U32] = UINT32_MAX, [RPC_U16] = UINT16_MAX, [RPC_U8] = UINT8_MAX};

static bool is_number(enum rpc_type type)
{
	return type >= RPC_U64 && type <= RPC_I32;
}

static bool fits(enum rpc_type type, json_int_t number)
{
	if (type == RPC_I32)
		return number >= INT32_MIN && number <= INT32_MAX;
	return number >= 0 && (uint64_t)number <= limits[type];
}

static void store_number(enum rpc_type type, void *at, uint64_t number)
{
	switch (type) {
	case RPC_U64:
		*(uint64_t *)at = number;
		break;
	case RPC_U32:
		*(uint32_t *)at = (uint32_t)number;
		break;
	case RPC_I32:
		*(int32_t *)at = (int32_t)number;
		break;
	case RPC_U16:
		*(uint16_t *)at = (uint16_t)number;
		break;
	default:
		*(uint8_t *)at = (uint8_t)number;
	}
}

static bool decode_one(const struct rpc_param *param, const json_t *value, void *at, char err[DP_ERR_MAX])
{
	const char *expected = "a number";

	switch (param->type) {
	case RPC_STRING:
		if (json_is_string(value)) {
			*(const char **)at = json_string_value(value);
			return true;
		}
		expected = "a string";
		break;
	case RPC_BOOL:
		if (json_is_boolean(value)) {
			*(bool *)at = json_is_true(value);
			return true;
		}
		expected = "true or false";
		break;
	case RPC_ARRAY:
		if (json_is_array(value)) {
			*(const json_t **)at = value;
			return true;
		}
		expected = "an array";
		break;
	default:
		if (json_is_integer(value) && fits(param->type, json_integer_value(value))) {
			store_number(param->type, at, (uint64_t)json_integer_value(value));
			return true;
		}
	}
	if (param->type == RPC_I32)
		snprintf(err, DP_ERR_MAX, "%s: expected a whole number", param->name);
	else if (is_number(param->type))
		snprintf(err, DP_ERR_MAX, "%s: expected a whole number from 0 to %llu", param->name,
			 (unsigned long long)limits[param->type]);
	else
		snprintf(err, DP_ERR_MAX, "%s: expected %s", param->name, expected);
	return false;
}

static bool is_known(const struct rpc_param *table, const char *name)
{
	for (const struct rpc_param *param = table; param && param->name; param++)
		if (strcmp(param->name, name) == 0)
			return true;
	return false;
}

bool rpc_params_decode(const struct rpc_param *table, json_t *params, void *out, char err[DP_ERR_MAX])
{
	const char *name;
	json_t *value;

	memset(out, 0, RPC_PARAMS_SIZE_MAX);
	if (params && !json_is_object(params)) {
		snprintf(err, DP_ERR_MAX, "params: expected an object");
		return false;
	}
	json_object_foreach (params, name, value) {
		if (!is_known(table, name)) {
			snprintf(err, DP_ERR_MAX, "there is no parameter '%.100s'", name);
			return false;
		}
	}
	for (const struct rpc_param *param = table; param && param->name; param++) {
		void *at = (char *)out + param->offset;

		value = json_object_get(params, param->name);
		if (value && !json_is_null(value)) {
			if (!decode_one(param, value, at, err))
				return false;
		} else if (param->required) {
			snprintf(err, DP_ERR_MAX, "%s: required, and missing", param->name);
			return false;
		} else if (is_number(param->type)) {
			store_number(param->type, at, param->preset);
		}
	}
	return true;
}
