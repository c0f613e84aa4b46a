/* SPDX-License-Identifier: BSD-3-Clause */
#include "rpc.h"

#include <errno.h>
#include <stdarg.h>
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"
#include "loop.h"
#include "peer.h"
#include "rpc_framing.h"

#define CONNECTIONS_MAX 64
#define IN_FLIGHT_MAX 4096     /* requests of one connection that wait for their answer */
#define OUT_BYTES_MAX (1 << 20) /* answers not read yet: no further request is taken meanwhile */
#define READ_BYTES 65536

/* Lives until it is closed and none of its requests is in flight. */
struct rpc_conn {
	struct loop_source source;
	struct rpc_conn *next;
	struct rpc_framing framing;
	char *in, *out;
	size_t in_len, in_size, scanned, out_at, out_len, out_size;
	unsigned in_flight;
	uint32_t watched;
	bool serving;  /* conn_serve is on the stack */
	bool finished; /* nothing more is read; closed once everything is answered and sent */
	bool closed;   /* the descriptor is gone */
};

/* One value from the stream: a request, or an array of them that is answered by an array. */
struct rpc_batch {
	struct rpc_conn *conn;
	json_t *answers; /* array; NULL: a single request */
	unsigned pending;
};

struct rpc_request {
	struct rpc_batch *batch;
	json_t *id; /* NULL: a notification, which is not answered */
};

static struct loop_source listener = {.fd = -1};
static const struct rpc_method *methods;
static struct rpc_conn *connections;
static unsigned connection_count;
static char *socket_path;

/* -- connections --------------------------------------------------------------------------------------------------- */

static void conn_free_if_unused(struct rpc_conn *conn)
{
	if (!conn->closed || conn->in_flight || conn->serving)
		return;
	for (struct rpc_conn **at = &connections; *at; at = &(*at)->next) {
		if (*at == conn) {
			*at = conn->next;
			break;
		}
	}
	free(conn->in);
	free(conn->out);
	free(conn);
}

static void conn_close(struct rpc_conn *conn)
{
	if (!conn->closed) {
		loop_remove(&conn->source);
		close(conn->source.fd);
		conn->closed = true;
		connection_count--;
	}
	conn_free_if_unused(conn);
}

static bool conn_may_take(const struct rpc_conn *conn)
{
	return !conn->finished && conn->in_flight < IN_FLIGHT_MAX && conn->out_len - conn->out_at < OUT_BYTES_MAX;
}

static void conn_watch(struct rpc_conn *conn)
{
	const uint32_t wanted = (conn_may_take(conn) ? EPOLLIN : 0u) | (conn->out_at < conn->out_len ? EPOLLOUT : 0u);

	if (!conn->closed && wanted != conn->watched) {
		conn->watched = wanted;
		loop_change(&conn->source, wanted);
	}
}

static bool grow(char **buffer, size_t *size, size_t needed)
{
	size_t larger = *size ? *size : 4096;
	char *moved;

	if (needed <= *size)
		return true;
	while (larger < needed)
		larger *= 2;
	moved = realloc(*buffer, larger);
	if (!moved)
		return false;
	*buffer = moved;
	*size = larger;
	return true;
}

/* Sends what the socket takes. False: the connection is closed. */
static bool conn_flush(struct rpc_conn *conn)
{
	while (conn->out_at < conn->out_len) {
		ssize_t sent = send(conn->source.fd, conn->out + conn->out_at, conn->out_len - conn->out_at,
				    MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno == EAGAIN)
			return true;
		if (sent < 0) {
			conn_close(conn);
			return false;
		}
		conn->out_at += (size_t)sent;
	}
	conn->out_at = conn->out_len = 0;
	if (conn->finished && !conn->in_flight) {
		conn_close(conn);
		return false;
	}
	return true;
}

static int append(const char *text, size_t len, void *arg)
{
	struct rpc_conn *conn = arg;

	if (!grow(&conn->out, &conn->out_size, conn->out_len + len))
		return -1;
	memcpy(conn->out + conn->out_len, text, len);
	conn->out_len += len;
	return 0;
}

/* ASCII only: SPDK's client decodes what it has received piece by piece, and a piece may end within a character. */
static void conn_send(struct rpc_conn *conn, json_t *answer)
{
	const size_t before = conn->out_len;

	if (conn->closed)
		return;
	if (!answer || json_dump_callback(answer, append, conn, JSON_COMPACT | JSON_ENSURE_ASCII) < 0) {
		conn->out_len = before;
		log_error("rpc.no_memory", "an answer is lost, and with it its connection");
		conn->finished = true;
	}
}

/* -- requests ------------------------------------------------------------------------------------------------------ */

static void conn_serve(struct rpc_conn *conn);

static void batch_end(struct rpc_batch *batch)
{
	struct rpc_conn *conn = batch->conn;

	if (batch->answers && json_array_size(batch->answers))
		conn_send(conn, batch->answers);
	json_decref(batch->answers);
	free(batch);
}

/* Takes over answer. */
static void answer_request(struct rpc_request *request, json_t *answer)
{
	struct rpc_batch *batch = request->batch;
	struct rpc_conn *conn = batch->conn;

	if (request->id && batch->answers)
		json_array_append(batch->answers, answer);
	else if (request->id)
		conn_send(conn, answer);
	json_decref(answer);
	json_decref(request->id);
	free(request);
	conn->in_flight--;
	if (--batch->pending == 0)
		batch_end(batch);
	if (conn->closed)
		conn_free_if_unused(conn);
	else if (!conn->serving && conn_flush(conn))
		conn_serve(conn);
}

void rpc_reply(struct rpc_request *request, json_t *result)
{
	json_t *id = request->id;

	answer_request(request, json_pack("{s:s, s:O?, s:o}", "jsonrpc", "2.0", "id", id, "result", result));
}

static json_t *error_answer(json_t *id, int code, const char *message)
{
	json_t *text = json_string(message);

	if (!text)
		text = json_string("a message that is not UTF-8");
	return json_pack("{s:s, s:O?, s:{s:i, s:o}}", "jsonrpc", "2.0", "id", id, "error", "code", code, "message", text);
}

void rpc_fail(struct rpc_request *request, int code, const char *format, ...)
{
	char message[1024];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(message, sizeof(message), format, arguments);
	va_end(arguments);
	answer_request(request, error_answer(request->id, code, message));
}

void rpc_finish(struct rpc_request *request, int rc, const char *err)
{
	if (rc < 0)
		rpc_fail(request, rc, "%s", err && *err ? err : strerror(-rc));
	else
		rpc_reply(request, json_true());
}

void rpc_finished(void *request, int rc)
{
	rpc_finish(request, rc, NULL);
}

static void dispatch(struct rpc_request *request, json_t *object)
{
	alignas(max_align_t) char params[RPC_PARAMS_SIZE_MAX];
	const char *name = json_string_value(json_object_get(object, "method"));
	char err[DP_ERR_MAX];

	if (!name) {
		rpc_fail(request, RPC_INVALID_REQUEST, "expected an object with a method");
		return;
	}
	for (const struct rpc_method *method = methods; method->name; method++) {
		if (strcmp(method->name, name) != 0)
			continue;
		if (rpc_params_decode(method->params, json_object_get(object, "params"), params, err))
			method->handler(request, params);
		else
			rpc_fail(request, RPC_INVALID_PARAMS, "params: %s", err);
		return;
	}
	rpc_fail(request, RPC_METHOD_NOT_FOUND, "there is no method '%.100s'", name);
}

/* False: no memory. */
static bool start_request(struct rpc_batch *batch, json_t *object)
{
	struct rpc_request *request = calloc(1, sizeof(*request));

	if (!request)
		return false;
	request->batch = batch;
	request->id = json_incref(json_object_get(object, "id"));
	if (!request->id && !json_object_get(object, "method"))
		request->id = json_null(); /* an error in it can be told to nobody in particular */
	batch->pending++;
	batch->conn->in_flight++;
	dispatch(request, object);
	return true;
}

/* One value from the stream. */
static void conn_value(struct rpc_conn *conn, const char *text, size_t len)
{
	json_error_t error;
	json_t *value = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
	struct rpc_batch *batch = value ? calloc(1, sizeof(*batch)) : NULL;
	bool ok = batch != NULL;

	if (!value || (json_is_array(value) && !json_array_size(value))) {
		json_t *answer = value ? error_answer(json_null(), RPC_INVALID_REQUEST, "an empty batch")
				       : error_answer(json_null(), RPC_PARSE_ERROR, error.text);

		conn_send(conn, answer);
		json_decref(answer);
		json_decref(value);
		free(batch);
		return;
	}
	if (ok) {
		*batch = (struct rpc_batch){.conn = conn, .pending = 1}; /* one for ourselves, until all are started */
		if (json_is_array(value)) {
			json_t *object;
			size_t index;

			batch->answers = json_array();
			json_array_foreach (value, index, object)
				ok = ok && start_request(batch, object);
		} else {
			ok = start_request(batch, value);
		}
		if (--batch->pending == 0)
			batch_end(batch);
	}
	json_decref(value);
	if (!ok)
		conn->finished = true;
}

/* Takes the requests that are complete in the buffer, as long as there is room for their answers. */
static void conn_serve(struct rpc_conn *conn)
{
	size_t start = 0;

	conn->serving = true;
	while (!conn->closed && conn_may_take(conn) && conn->scanned < conn->in_len) {
		ssize_t end = rpc_framing_scan(&conn->framing, conn->in + conn->scanned, conn->in_len - conn->scanned);

		if (end < 0) {
			json_t *answer = error_answer(json_null(), RPC_PARSE_ERROR, "expected a JSON object or array");

			conn_send(conn, answer);
			json_decref(answer);
			conn->finished = true;
		} else if (end == 0) {
			conn->scanned = conn->in_len;
		} else {
			conn->scanned += (size_t)end;
			conn_value(conn, conn->in + start, conn->scanned - start);
			start = conn->scanned;
		}
	}
	if (start) {
		memmove(conn->in, conn->in + start, conn->in_len - start);
		conn->in_len -= start;
		conn->scanned -= start;
	}
	if (conn->in_len >= RPC_REQUEST_BYTES_MAX && conn->scanned == conn->in_len) {
		log_warning("rpc.malformed", "a request of more than %u bytes", RPC_REQUEST_BYTES_MAX);
		conn->finished = true;
	}
	conn->serving = false;
	if (conn->closed)
		conn_free_if_unused(conn);
	else if (conn_flush(conn))
		conn_watch(conn);
}

static void conn_receive(struct rpc_conn *conn)
{
	ssize_t got;

	if (!grow(&conn->in, &conn->in_size, conn->in_len + READ_BYTES)) {
		conn_close(conn);
		return;
	}
	got = recv(conn->source.fd, conn->in + conn->in_len, READ_BYTES, MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got < 0) {
		conn_close(conn);
		return;
	}
	if (got == 0) { /* it sends no more, but may still read */
		conn->finished = true;
		if (conn_flush(conn))
			conn_watch(conn);
		return;
	}
	conn->in_len += (size_t)got;
	conn_serve(conn);
}

static void conn_ready(struct loop_source *source, uint32_t events)
{
	struct rpc_conn *conn = (struct rpc_conn *)source;

	if (events & (EPOLLERR | EPOLLHUP) && !(events & EPOLLIN)) {
		conn_close(conn);
		return;
	}
	if (events & EPOLLIN) {
		conn_receive(conn); /* answers on the way, and what it has freed cannot be looked at any more */
		return;
	}
	if (conn_flush(conn))
		conn_serve(conn);
}

/* -- the socket ---------------------------------------------------------------------------------------------------- */

static void listener_ready(struct loop_source *source, uint32_t events)
{
	int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct rpc_conn *conn = NULL;

	(void)events;
	if (fd < 0)
		return;
	if (!peer_allowed(fd))
		log_warning("rpc.refused", "a process of another user");
	else if (connection_count >= CONNECTIONS_MAX)
		log_warning("rpc.refused", "there are %u connections", connection_count);
	else
		conn = calloc(1, sizeof(*conn));
	if (!conn) {
		close(fd);
		return;
	}
	conn->source = (struct loop_source){.fd = fd, .ready = conn_ready};
	conn->watched = EPOLLIN;
	conn->next = connections;
	connections = conn;
	connection_count++;
	if (loop_add(&conn->source, EPOLLIN) < 0)
		conn_close(conn);
}

int rpc_listen(const char *path, const struct rpc_method *table, char err[DP_ERR_MAX])
{
	int fd = peer_listen(path, SOCK_STREAM, err);

	if (fd < 0)
		return fd;
	methods = table;
	socket_path = strdup(path);
	listener = (struct loop_source){.fd = fd, .ready = listener_ready};
	return loop_add(&listener, EPOLLIN);
}

void rpc_close(void)
{
	if (listener.fd >= 0) {
		loop_remove(&listener);
		close(listener.fd);
		listener.fd = -1;
	}
	if (socket_path)
		unlink(socket_path);
	free(socket_path);
	socket_path = NULL;
	for (struct rpc_conn *conn = connections, *next; conn; conn = next) {
		next = conn->next;
		conn_close(conn);
	}
}
