/* SPDX-License-Identifier: BSD-3-Clause
 *
 * upcall.c: commands that the control plane decides. A request waits under a token in its reactor's list; the answer
 * finds it there, or not if its queue has ended meanwhile.
 */
#include <stdlib.h>

#include "engine_priv.h"

struct upcall_post {
	struct dp_queue_key key;
	uint64_t token;
	uint32_t len;
	uint8_t sqe[64];
	uint8_t data[];
};

static void upcall_out(void *arg)
{
	struct upcall_post *post = arg;

	engine_events()->upcall(post->key, post->token, post->sqe, post->data, post->len);
	free(post);
}

void upcall_send(struct request *rq, const uint8_t sqe[64], const uint8_t *data, uint32_t len)
{
	static _Atomic uint64_t counter;
	struct reactor *r = rq->q->r;
	struct upcall_post *post = malloc(sizeof(*post) + len);
	struct upcall *up = malloc(sizeof(*up));

	if (!post || !up) {
		free(post);
		free(up);
		io_upcall_done(rq, ST_INTERRUPTED, 0, false);
		return;
	}
	up->token = (atomic_fetch_add(&counter, 1) + 1) << 8 | r->id;
	up->rq = rq;
	LIST_INSERT_HEAD(&r->upcalls, up, link);
	post->key = rq->q->key;
	post->token = up->token;
	post->len = len;
	memcpy(post->sqe, sqe, 64);
	if (len)
		memcpy(post->data, data, len);
	engine_post(upcall_out, post);
}

void upcall_drop(struct request *rq)
{
	struct upcall *up;

	LIST_FOREACH(up, &rq->q->r->upcalls, link)
		if (up->rq == rq) {
			LIST_REMOVE(up, link);
			free(up);
			return;
		}
}

struct upcall_answer {
	struct rmsg msg;
	uint64_t token;
	uint32_t status, dw0;
	bool close;
};

static void upcall_in(struct reactor *r, struct rmsg *msg)
{
	struct upcall_answer *answer = dp_container_of(msg, struct upcall_answer, msg);
	struct upcall *up;

	LIST_FOREACH(up, &r->upcalls, link)
		if (up->token == answer->token) {
			struct request *rq = up->rq;

			LIST_REMOVE(up, link);
			free(up);
			io_upcall_done(rq, answer->status, answer->dw0, answer->close);
			break;
		}
	free(answer);
}

void dp_upcall_complete(uint64_t token, uint16_t status, bool dnr, uint32_t dw0, bool close)
{
	struct upcall_answer *answer;

	if ((token & 0xFF) >= engine_reactors())
		return;
	answer = calloc(1, sizeof(*answer));
	if (!answer)
		abort();
	answer->msg.fn = upcall_in;
	answer->token = token;
	answer->status = status | (dnr ? ST_DNR : 0);
	answer->dw0 = dw0;
	answer->close = close;
	reactor_send(engine_reactor((unsigned)(token & 0xFF)), &answer->msg);
}
