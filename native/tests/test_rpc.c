/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The JSON-RPC server: framing, errors, batches, answers out of order, and each method's parameters.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "fake_engine.h"
#include "log.h"
#include "loop.h"
#include "rpc_methods.h"
#include "spdk.h"

static char path[64];
static int client = -1;
static char received[1 << 20];
static size_t received_len;

static int connect_client(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

	strcpy(address.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static int setup(void **state)
{
	char err[DP_ERR_MAX] = "";

	(void)state;
	log_configure("off", "console");
	fake_reset();
	received_len = 0;
	snprintf(path, sizeof(path), "/tmp/nvmet-p2p-test-%d.sock", (int)getpid());
	assert_int_equal(loop_open(), 0);
	assert_int_equal(rpc_listen(path, rpc_methods, err), 0);
	client = connect_client();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fake_release();
	for (int i = 0; i < 4; i++)
		loop_step(0);
	rpc_close();
	rpc_bdev_forget_all();
	loop_close();
	if (client >= 0)
		close(client);
	return 0;
}

static void step(void)
{
	for (int i = 0; i < 12; i++)
		loop_step(0);
}

static void write_text(const char *text, size_t len)
{
	while (len) {
		ssize_t sent = send(client, text, len, MSG_NOSIGNAL);

		if (sent > 0) {
			text += sent;
			len -= (size_t)sent;
		}
		loop_step(0);
	}
	step();
}

/* The next answer, or NULL when there is none yet. At the end of the connection too. */
static json_t *read_answer(void)
{
	json_error_t error;
	ssize_t got = recv(client, received + received_len, sizeof(received) - received_len, 0);

	if (got > 0)
		received_len += (size_t)got;
	if (!received_len)
		return NULL;
	json_t *value = json_loadb(received, received_len, JSON_DISABLE_EOF_CHECK, &error);

	assert_non_null(value);
	received_len -= (size_t)error.position;
	memmove(received, received + error.position, received_len);
	return value;
}

static bool at_end(void)
{
	char byte;

	return recv(client, &byte, 1, 0) == 0;
}

static json_t *call(const char *text)
{
	write_text(text, strlen(text));
	return read_answer();
}

/* The code of the error that a call is answered with, or 0. */
static int code_of(const char *method, const char *params)
{
	char text[4096];

	snprintf(text, sizeof(text), "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"%s\",\"params\":%s}", method, params);
	json_t *answer = call(text);
	json_t *error = json_object_get(answer, "error");
	const int code = error ? (int)json_integer_value(json_object_get(error, "code")) : 0;

	assert_non_null(answer);
	assert_true(error || json_object_get(answer, "result"));
	assert_int_equal(json_integer_value(json_object_get(answer, "id")), 1);
	json_decref(answer);
	return code;
}

static json_t *result_of(const char *method, const char *params)
{
	char text[4096];

	snprintf(text, sizeof(text), "{\"id\":1,\"method\":\"%s\",\"params\":%s}", method, params);
	json_t *answer = call(text);
	json_t *result = json_incref(json_object_get(answer, "result"));

	assert_non_null(result);
	json_decref(answer);
	return result;
}

static void test_socket_is_private(void **state)
{
	struct stat found;

	(void)state;
	assert_int_equal(stat(path, &found), 0);
	assert_int_equal(found.st_mode & 0777, 0600);
}

static void test_framing_byte_by_byte_and_back_to_back(void **state)
{
	const char *one = "{ \"id\": \"}]\\\"{\",\n \"method\": \"rpc_get_methods\" }";
	const char *two = "{\"id\":1,\"method\":\"spdk_get_version\"}{\"id\":2,\"method\":\"spdk_get_version\"}\n ";

	(void)state;
	for (const char *c = one; *c; c++)
		write_text(c, 1);
	json_t *answer = read_answer();

	assert_true(json_array_size(json_object_get(answer, "result")) > 20);
	assert_string_equal(json_string_value(json_object_get(answer, "id")), "}]\"{");
	json_decref(answer);
	answer = call(two);
	assert_int_equal(json_integer_value(json_object_get(answer, "id")), 1);
	json_decref(answer);
	answer = read_answer();
	assert_int_equal(json_integer_value(json_object_get(answer, "id")), 2);
	json_decref(answer);
}

static void test_errors_of_the_protocol(void **state)
{
	json_t *answer;

	(void)state;
	assert_int_equal(code_of("nothing", "{}"), RPC_METHOD_NOT_FOUND);
	assert_int_equal(code_of("p2p_get_info", "[]"), RPC_INVALID_PARAMS);
	assert_int_equal(code_of("p2p_get_info", "{\"x\":1}"), RPC_INVALID_PARAMS);
	answer = call("{\"id\":7}");
	assert_int_equal(json_integer_value(json_object_get(json_object_get(answer, "error"), "code")), RPC_INVALID_REQUEST);
	json_decref(answer);
	answer = call("{\"id\":7,}");
	assert_int_equal(json_integer_value(json_object_get(json_object_get(answer, "error"), "code")), RPC_PARSE_ERROR);
	json_decref(answer);
	const char *notification = "{\"method\":\"spdk_get_version\"}";

	write_text(notification, strlen(notification));
	assert_null(read_answer());
	answer = call("x");
	assert_int_equal(json_integer_value(json_object_get(json_object_get(answer, "error"), "code")), RPC_PARSE_ERROR);
	json_decref(answer);
	assert_true(at_end());
}

static void test_nesting_is_bounded(void **state)
{
	char text[64];

	(void)state;
	memset(text, '[', sizeof(text));
	write_text(text, sizeof(text));
	json_decref(read_answer());
	assert_true(at_end());
}

static void test_size_is_bounded(void **state)
{
	const size_t size = RPC_REQUEST_BYTES_MAX + 65536;
	char *text = malloc(size);

	(void)state;
	memset(text, ' ', size);
	memcpy(text, "{\"", 2);
	for (size_t sent = 0; sent < size;) {
		ssize_t got = send(client, text + sent, size - sent, MSG_NOSIGNAL);

		if (got > 0)
			sent += (size_t)got;
		else if (errno != EAGAIN)
			break; /* it has had enough */
		loop_step(0);
	}
	step();
	free(text);
	char byte;
	assert_true(recv(client, &byte, 1, 0) <= 0 && errno != EAGAIN);
}

static void test_batch(void **state)
{
	(void)state;
	json_t *answer = call("[{\"id\":1,\"method\":\"spdk_get_version\"},{\"id\":2,\"method\":\"no\"},"
			      "{\"method\":\"spdk_get_version\"},7,"
			      "{\"id\":3,\"method\":\"p2p_controller_remove\",\"params\":{\"key\":1}}]");

	assert_int_equal(json_array_size(answer), 4);
	json_decref(answer);
	answer = call("[]");
	assert_non_null(json_object_get(answer, "error"));
	json_decref(answer);
}

static void test_answers_come_out_of_order(void **state)
{
	(void)state;
	fake.hold = true;
	json_t *answer = call("{\"id\":1,\"method\":\"p2p_queue_close\",\"params\":{\"key\":5}}"
			      "{\"id\":2,\"method\":\"spdk_get_version\"}");

	assert_int_equal(json_integer_value(json_object_get(answer, "id")), 2);
	json_decref(answer);
	assert_null(read_answer());
	fake_release();
	step();
	answer = read_answer();
	assert_int_equal(json_integer_value(json_object_get(answer, "id")), 1);
	assert_true(fake.closed.ctrlr == 5 && fake.closed.qid == 0);
	json_decref(answer);
}

static void test_client_that_goes_while_it_is_served(void **state)
{
	(void)state;
	fake.hold = true;
	const char *text = "[{\"id\":1,\"method\":\"p2p_controller_remove\",\"params\":{\"key\":5}},"
			   "{\"id\":2,\"method\":\"p2p_queue_abort\",\"params\":{\"key\":5,\"qid\":1,\"cid\":7}}]";
	write_text(text, strlen(text));
	close(client);
	client = -1;
	step();
	fake_release();
	step();
}

static void test_client_that_does_not_read(void **state)
{
	unsigned asked = 0, got = 0;

	(void)state;
	for (int idle = 0; idle < 1000; idle++) { /* until neither side takes more */
		if (send(client, "{\"id\":1,\"method\":\"rpc_get_methods\"}", 35, MSG_NOSIGNAL) == 35) {
			asked++;
			idle = 0;
		}
		loop_step(0);
	}
	assert_true(asked > 100);
	for (int idle = 0; idle < 1000 && got < asked; idle++) {
		json_t *answer = read_answer();

		if (answer) {
			got++;
			idle = 0;
		}
		json_decref(answer);
		loop_step(0);
	}
	assert_int_equal(got, asked);
}

static void test_bdevs(void **state)
{
	const char *good = "{\"name\":\"m0\",\"num_blocks\":16,\"block_size\":512,\"uuid\":\"u\"}";

	(void)state;
	assert_int_equal(code_of("bdev_malloc_create", good), 0);
	assert_int_equal(code_of("bdev_malloc_create", good), -EEXIST);
	assert_int_equal(code_of("bdev_malloc_create", "{\"name\":\"\",\"num_blocks\":1,\"block_size\":512}"), -EINVAL);
	assert_int_equal(code_of("bdev_malloc_create", "{\"name\":\"m1\",\"num_blocks\":-1,\"block_size\":512}"),
			 RPC_INVALID_PARAMS);
	assert_int_equal(code_of("bdev_malloc_create", "{\"name\":\"m1\",\"block_size\":512}"), RPC_INVALID_PARAMS);
	assert_int_equal(code_of("bdev_malloc_create", "{\"name\":1,\"num_blocks\":1,\"block_size\":512}"), RPC_INVALID_PARAMS);
	fake.create_rc = -ENOENT;
	assert_int_equal(code_of("bdev_aio_create", "{\"name\":\"a\",\"filename\":\"/x\"}"), -ENOENT);
	assert_int_equal(code_of("bdev_error_create", "{\"base_name\":\"m0\"}"), 0);
	assert_int_equal(code_of("bdev_error_inject_error",
				 "{\"name\":\"EE_m0\",\"io_type\":\"read\",\"error_type\":\"failure\"}"), 0);
	assert_int_equal(code_of("bdev_error_inject_error",
				 "{\"name\":\"EE_m0\",\"io_type\":\"read\",\"error_type\":\"x\"}"), -EINVAL);
	json_t *shown = result_of("bdev_get_bdevs", "{}");

	assert_int_equal(json_array_size(shown), 2);
	json_t *config = json_object_get(json_object_get(json_array_get(shown, 0), "driver_specific"), "config");

	assert_string_equal(json_string_value(json_object_get(config, "method")), "bdev_malloc_create");
	json_decref(shown);
	shown = result_of("bdev_null_resize", "{\"name\":\"m0\",\"num_blocks\":32}");
	assert_int_equal(json_integer_value(json_object_get(shown, "num_blocks")), 32);
	json_decref(shown);
	assert_int_equal(code_of("bdev_null_resize", "{\"name\":\"m0\"}"), RPC_INVALID_PARAMS);
	assert_int_equal(code_of("bdev_malloc_delete", "{\"name\":\"m0\"}"), 0);
	assert_int_equal(code_of("bdev_malloc_delete", "{\"name\":\"m0\"}"), -ENODEV);
	assert_int_equal(fake.bdevs, 1);
}

static void test_cmb_bdevs(void **state)
{
	const char *good = "{\"name\":\"c0\",\"num_blocks\":16,\"block_size\":512,\"pool\":\"p\",\"uuid\":null}";

	(void)state;
	assert_int_equal(code_of("bdev_cmb_create", good), 0);
	assert_int_equal(fake.bdev.kind, DP_BDEV_CMB);
	assert_int_equal(fake.bdev.num_blocks, 16);
	assert_false(fake.bdev.emulated || fake.bdev.pmr);
	json_t *shown = result_of("bdev_get_bdevs", "{}");
	json_t *config = json_object_get(json_object_get(json_array_get(shown, 0), "driver_specific"), "config");
	json_t *asked = json_pack("{s:s, s:o}", "method", "bdev_cmb_create", "params", json_loads(good, 0, NULL));

	assert_true(json_equal(config, asked)); /* what a control plane compares */
	json_decref(asked);
	json_decref(shown);
	assert_int_equal(code_of("bdev_cmb_create", "{\"name\":\"c1\",\"num_blocks\":16,\"block_size\":512,\"emulated\":true,"
						    "\"memory\":\"pmr\"}"), 0);
	assert_true(fake.bdev.emulated && fake.bdev.pmr);
	assert_int_equal(code_of("bdev_cmb_create", "{\"name\":\"c2\",\"num_blocks\":1,\"block_size\":512,\"memory\":\"x\"}"),
			 RPC_INVALID_PARAMS);
	assert_int_equal(code_of("bdev_cmb_delete", "{\"name\":\"c0\"}"), 0);
}

static json_int_t number(json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

static void test_pools(void **state)
{
	(void)state;
	assert_int_equal(code_of("p2p_pool_create", "{\"name\":\"p\",\"kind\":\"host\"}"), RPC_INVALID_PARAMS);
	assert_int_equal(code_of("p2p_pool_create", "{\"name\":\"p\",\"kind\":\"emulated\",\"bytes\":8192,\"wipe\":\"no\"}"),
			 RPC_INVALID_PARAMS);
	fake.pool_rc = -ENOENT;
	assert_int_equal(code_of("p2p_pool_create", "{\"name\":\"0000:03:00.0\",\"kind\":\"p2pmem\"}"), -ENOENT);
	json_t *made = result_of("p2p_pool_create", "{\"name\":\"0000:03:00.0\",\"kind\":\"p2pmem\"}");

	assert_int_equal(number(made, "bytes"), 1 << 20);
	assert_string_equal(json_string_value(json_object_get(made, "kind")), "p2pmem");
	json_decref(made);
	assert_string_equal(fake.pool_path, "/sys/bus/pci/devices/0000:03:00.0/p2pmem/allocate");
	assert_false(fake.pool.wipe_always);
	assert_int_equal(code_of("p2p_pool_create", "{\"name\":\"p\",\"kind\":\"emulated\",\"bytes\":8192,"
						    "\"wipe\":\"always\"}"), 0);
	assert_true(fake.pool.wipe_always);
	assert_int_equal(fake.pool.bytes, 8192);
	assert_int_equal(code_of("bdev_malloc_create", "{\"name\":\"m0\",\"num_blocks\":16,\"block_size\":512}"), 0);
	assert_int_equal(code_of("p2p_pool_create", "{\"name\":\"p\",\"kind\":\"spdk_cmb\",\"path\":\"/x\"}"),
			 RPC_INVALID_PARAMS);
	json_t *probed = result_of("p2p_pool_probe", "{\"name\":\"0000:03:00.0\"}");

	assert_string_equal(json_string_value(json_object_get(probed, "region")), "pmr");
	assert_string_equal(json_string_value(json_object_get(probed, "via")), "vfio");
	assert_string_equal(json_string_value(json_object_get(probed, "mapping")), "uncached");
	assert_int_equal(json_integer_value(json_object_get(probed, "bytes")), 1 << 24);
	assert_string_equal(json_string_value(json_object_get(probed, "no_dma_buf")), "a test");
	json_decref(probed);
	probed = result_of("p2p_pool_probe", "{\"name\":\"0000:03:00.0\",\"attached\":true}");
	assert_string_equal(json_string_value(json_object_get(probed, "via")), "spdk");
	json_decref(probed);
	fake.pool_rc = -EPERM;
	assert_int_equal(code_of("p2p_pool_probe", "{\"name\":\"0000:03:00.0\"}"), -EPERM);
	assert_int_equal(code_of("p2p_pool_allow", "{\"name\":\"p\",\"bdev\":\"x\",\"allow\":true}"), -ENODEV);
	assert_int_equal(code_of("p2p_pool_allow", "{\"name\":\"p\",\"bdev\":\"m0\"}"), RPC_INVALID_PARAMS);
	assert_int_equal(code_of("p2p_pool_allow", "{\"name\":\"p\",\"bdev\":\"m0\",\"allow\":true}"), 0);
	json_t *pools = result_of("p2p_get_pools", "{}"), *pool = json_array_get(pools, 0);

	assert_int_equal(json_array_size(pools), 1);
	assert_int_equal(number(pool, "free"), 4096);
	assert_true(json_is_true(json_object_get(pool, "lost")));
	assert_string_equal(json_string_value(json_object_get(pool, "why")), "test");
	assert_string_equal(json_string_value(json_array_get(json_object_get(pool, "allowed"), 0)), "m0");
	json_decref(pools);
	assert_int_equal(code_of("p2p_pool_delete", "{\"name\":\"x\"}"), -ENODEV);
	assert_int_equal(code_of("p2p_pool_delete", "{\"name\":\"p\"}"), 0);
}

static void test_calibration(void **state)
{
	(void)state;
	assert_int_equal(code_of("p2p_pool_create", "{\"name\":\"p\",\"kind\":\"emulated\",\"bytes\":8192}"), 0);
	assert_int_equal(code_of("p2p_pool_calibrate", "{\"name\":\"x\"}"), -ENODEV);
	assert_int_equal(code_of("p2p_pool_calibrate", "{\"name\":\"p\",\"bdev\":\"b\"}"), RPC_INVALID_PARAMS);
	json_t *result = result_of("p2p_pool_calibrate", "{\"name\":\"p\",\"bdev\":\"b\",\"journal\":\"/x\"}");

	assert_true(json_real_value(json_object_get(result, "cpu_write_mib_s")) == 1.5);
	assert_true(json_is_true(json_object_get(result, "verified")));
	assert_string_equal(json_string_value(json_object_get(result, "reason")), "");
	assert_int_equal(json_object_size(result), 8);
	json_decref(result);
	fake.calibration_fails = true;
	assert_int_equal(code_of("p2p_pool_calibrate", "{\"name\":\"p\"}"), -EIO);
	assert_int_equal(code_of("p2p_pool_restore", "{\"bdev\":\"Nvme0n1\"}"), RPC_INVALID_PARAMS);
	assert_int_equal(code_of("p2p_pool_restore", "{\"bdev\":\"x\",\"journal\":\"/x\"}"), -ENODEV);
	assert_int_equal(code_of("p2p_pool_restore", "{\"bdev\":\"Nvme0n1\",\"journal\":\"/x\"}"), 0);
	fake.pool_rc = -EUCLEAN;
	assert_int_equal(code_of("p2p_pool_restore", "{\"bdev\":\"Nvme0n1\",\"journal\":\"/x\"}"), -EUCLEAN);
}

static void test_staging(void **state)
{
	(void)state;
	assert_int_equal(code_of("bdev_malloc_create", "{\"name\":\"m0\",\"num_blocks\":16,\"block_size\":512}"), 0);
	assert_int_equal(code_of("p2p_get_staging", "{\"name\":\"x\"}"), -ENODEV);
	json_t *shown = result_of("p2p_get_staging", "{}"), *one = json_array_get(shown, 0);
	json_t *pools = json_object_get(one, "pools");

	assert_int_equal(json_array_size(shown), 1);
	assert_string_equal(json_string_value(json_object_get(one, "bdev")), "m0");
	assert_int_equal(number(one, "fallbacks"), 3);
	assert_int_equal(number(one, "interrupted"), 4);
	assert_int_equal(number(json_object_get(one, "copy_routes"), "device"), 5);
	assert_int_equal(number(json_object_get(one, "copy_routes"), "host"), 8);
	assert_int_equal(json_array_size(pools), 2); /* host always, and what was used */
	assert_string_equal(json_string_value(json_object_get(json_array_get(pools, 0), "pool")), "host");
	assert_int_equal(number(json_array_get(pools, 0), "read_bytes"), 10);
	assert_string_equal(json_string_value(json_object_get(json_array_get(pools, 1), "pool")), "0000:03:00.0");
	assert_int_equal(number(json_array_get(pools, 1), "write_bytes"), 4096);
	assert_int_equal(json_array_size(json_object_get(one, "withdrawn")), 1);
	assert_string_equal(json_string_value(json_array_get(json_object_get(one, "withdrawn"), 0)), "0000:03:00.0");
	json_decref(shown);
}

static void test_qos_keeps_what_is_left_out(void **state)
{
	(void)state;
	assert_int_equal(code_of("bdev_null_create", "{\"name\":\"n\",\"num_blocks\":16,\"block_size\":512}"), 0);
	assert_int_equal(code_of("bdev_set_qos_limit", "{\"name\":\"n\",\"rw_ios_per_sec\":1000,\"r_mbytes_per_sec\":5}"), 0);
	assert_int_equal(code_of("bdev_set_qos_limit", "{\"name\":\"n\",\"r_mbytes_per_sec\":0}"), 0);
	assert_true(fake.qos[0] == 1000 && fake.qos[2] == 0);
}

static void test_counters(void **state)
{
	(void)state;
	assert_int_equal(code_of("bdev_null_create", "{\"name\":\"n\",\"num_blocks\":16,\"block_size\":512}"), 0);
	json_t *shown = result_of("bdev_get_iostat", "{\"names\":[\"n\"]}");
	json_t *bdev = json_array_get(json_object_get(shown, "bdevs"), 0);

	assert_int_equal(json_integer_value(json_object_get(bdev, "bytes_read")), 4096);
	assert_int_equal(json_integer_value(json_object_get(json_object_get(bdev, "io_error"), "write")), 2);
	json_decref(shown);
	assert_int_equal(code_of("bdev_get_iostat", "{\"names\":[\"x\"]}"), -ENODEV);
	assert_int_equal(code_of("bdev_get_iostat", "{\"names\":[1]}"), RPC_INVALID_PARAMS);
	assert_int_equal(code_of("bdev_reset_iostat", "{}"), 0);
	shown = result_of("bdev_get_histogram", "{\"name\":\"n\"}");
	assert_int_equal(strlen(json_string_value(json_object_get(shown, "histogram"))), 44);
	assert_int_equal(json_integer_value(json_object_get(shown, "max_range")), 1);
	json_decref(shown);
	json_decref(result_of("p2p_get_queues", "{}"));
	json_decref(result_of("p2p_get_reactors", "{}"));
	json_decref(result_of("p2p_get_info", "{}"));
}

static void test_controllers(void **state)
{
	static const char *const ns = "{\"nsid\":1,\"bdev\":\"b\",\"anagrpid\":1,\"ana_state\":1,\"write_protected\":false}";
	char params[512];

	(void)state;
	snprintf(params, sizeof(params), "{\"key\":3,\"mdts_bytes\":131072,\"copy_formats\":3,\"namespaces\":[%s]}", ns);
	assert_int_equal(code_of("p2p_controller_set", params), 0);
	assert_true(fake.view.key == 3 && fake.view.num_ns == 1 && fake.view.mdts_bytes == 131072);
	fake.set_rc = -ENODEV;
	assert_int_equal(code_of("p2p_controller_set", params), -ENODEV);
	assert_int_equal(code_of("p2p_controller_set",
				 "{\"key\":3,\"mdts_bytes\":1,\"copy_formats\":3,\"namespaces\":[{\"nsid\":1}]}"),
			 RPC_INVALID_PARAMS);
	assert_int_equal(code_of("p2p_controller_set",
				 "{\"key\":3,\"mdts_bytes\":1,\"copy_formats\":3,\"namespaces\":[{\"nsid\":0,\"bdev\":\"b\","
				 "\"anagrpid\":1,\"ana_state\":1,\"write_protected\":false}]}"),
			 RPC_INVALID_PARAMS);
	assert_int_equal(code_of("p2p_controller_remove", "{\"key\":3}"), 0);
	json_t *found = result_of("p2p_queue_abort", "{\"key\":3,\"qid\":1,\"cid\":7}");

	assert_true(json_is_true(found));
	json_decref(found);
	found = result_of("p2p_queue_abort", "{\"key\":3,\"qid\":1,\"cid\":8}");
	assert_true(json_is_false(found));
	json_decref(found);
}

static void test_known_namespaces(void **state)
{
	static const char *const wrong[] = {"7", "{\"nsid\":1}", "{\"nsid\":0,\"identity\":\"x\"}",
					    "{\"nsid\":4294967295,\"identity\":\"x\"}", "{\"nsid\":1,\"identity\":7}"};
	char params[512], text[81];

	(void)state;
	for (size_t i = 0; i < DP_ARRAY_LEN(wrong); i++) {
		snprintf(params, sizeof(params),
			 "{\"name\":\"N\",\"trtype\":\"X\",\"traddr\":\"\",\"namespaces\":[{\"nsid\":1,\"identity\":\"x\"},%s]}",
			 wrong[i]);
		assert_int_equal(code_of("bdev_nvme_attach_controller", params), -EINVAL);
	}
	for (int len = 79; len <= 80; len++) {
		memset(text, 'x', sizeof(text));
		text[len] = 0;
		snprintf(params, sizeof(params),
			 "{\"name\":\"N\",\"trtype\":\"X\",\"traddr\":\"\",\"namespaces\":[{\"nsid\":1,\"identity\":\"%s\"}]}",
			 text);
		/* built without SPDK, or no such transport: either comes after the parameters */
		if (len == 80)
			assert_int_equal(code_of("bdev_nvme_attach_controller", params), -EINVAL);
		else
			assert_int_equal(code_of("bdev_nvme_attach_controller", params),
					 dp_spdk_built() ? -EINVAL : -EOPNOTSUPP);
	}
}

static void test_pools_of_a_controller(void **state)
{
#define NS "{\"key\":3,\"mdts_bytes\":1,\"copy_formats\":3,\"namespaces\":[{\"nsid\":1,\"bdev\":\"b\",\"anagrpid\":1," \
	"\"ana_state\":1,\"write_protected\":false"
	(void)state;
	assert_int_equal(code_of("p2p_controller_set", NS ",\"read_pool\":\"0000:03:00.0\",\"write_pool\":null,"
				 "\"copy_pool\":\"e\",\"strict\":true}],\"host\":\"nqn.h\"}"), 0);
	assert_string_equal(fake.host, "nqn.h");
	assert_string_equal(fake.pools[0], "0000:03:00.0");
	assert_string_equal(fake.pools[1], "");
	assert_string_equal(fake.pools[2], "e");
	assert_true(fake.strict);
	assert_int_equal(code_of("p2p_controller_set", NS "}]}"), 0);
	assert_string_equal(fake.host, "");
	assert_string_equal(fake.pools[0], "");
	assert_false(fake.strict);
	fake.check_rc = -EPERM;
	assert_int_equal(code_of("p2p_controller_set", NS ",\"read_pool\":\"e\"}]}"), -EPERM);
	assert_int_equal(fake.controllers, 2);
	assert_int_equal(code_of("p2p_controller_set", NS ",\"read_pool\":7}]}"), RPC_INVALID_PARAMS);
	assert_int_equal(code_of("p2p_controller_set", NS ",\"strict\":1}]}"), RPC_INVALID_PARAMS);
	assert_int_equal(code_of("p2p_controller_set", NS ",\"pool\":\"e\"}]}"), RPC_INVALID_PARAMS);
	assert_int_equal(code_of("p2p_controller_set", NS "}],\"host\":1}"), RPC_INVALID_PARAMS);
#undef NS
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_socket_is_private),
		TEST(test_framing_byte_by_byte_and_back_to_back),
		TEST(test_errors_of_the_protocol),
		TEST(test_nesting_is_bounded),
		TEST(test_size_is_bounded),
		TEST(test_batch),
		TEST(test_answers_come_out_of_order),
		TEST(test_client_that_goes_while_it_is_served),
		TEST(test_client_that_does_not_read),
		TEST(test_bdevs),
		TEST(test_cmb_bdevs),
		TEST(test_pools),
		TEST(test_calibration),
		TEST(test_staging),
		TEST(test_qos_keeps_what_is_left_out),
		TEST(test_counters),
		TEST(test_controllers),
		TEST(test_known_namespaces),
		TEST(test_pools_of_a_controller),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
