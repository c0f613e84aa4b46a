/* SPDX-License-Identifier: BSD-3-Clause */
#include "channel_frame.h"

#include <errno.h>
#include <string.h>

#define ADOPT_FLAGS                                                                                                    \
	(CHANNEL_ADOPT_SQ_FLOW_CONTROL | CHANNEL_ADOPT_C2H_SUCCESS | CHANNEL_ADOPT_HDGST | CHANNEL_ADOPT_DDGST)
#define DPA_MAX 31 /* HPDA and CPDA: dwords, 0's based, at most 128 bytes */

static int bad(const char **why, const char *what)
{
	*why = what;
	return -EPROTO;
}

static int check_adopt(const struct channel_message *m, unsigned nfds, const char **why)
{
	const struct channel_adopt *adopt = &m->u.adopt;

	if (nfds != 1)
		return bad(why, "ADOPT without exactly one descriptor");
	if (adopt->response_len != m->tail_len || adopt->response_len > CHANNEL_RESPONSE_MAX)
		return bad(why, "ADOPT: response_len is not what follows");
	if (adopt->qid == 0 || adopt->sqsize == 0)
		return bad(why, "ADOPT: QID and SQSIZE are at least 1");
	if (adopt->flags & CHANNEL_ADOPT_SQ_FLOW_CONTROL && adopt->sqhd > adopt->sqsize) /* FFFFh without flow control */
		return bad(why, "ADOPT: SQHD beyond SQSIZE");
	if (adopt->flags & ~ADOPT_FLAGS || adopt->reserved)
		return bad(why, "ADOPT: unknown flags");
	if (adopt->hpda > DPA_MAX || adopt->cpda > DPA_MAX)
		return bad(why, "ADOPT: alignment beyond 128 bytes");
	if (!memchr(adopt->peer, 0, sizeof(adopt->peer)))
		return bad(why, "ADOPT: peer is not terminated");
	return 0;
}

static int check_rdma(const struct channel_message *m, const char **why)
{
	const struct channel_rdma_adopt *adopt = &m->u.rdma_adopt;

	if (m->type == CHANNEL_RDMA_REPLY) {
		if (m->u.reply.flags & ~CHANNEL_RDMA_REPLY_FLAGS || m->u.reply.reserved)
			return bad(why, "RDMA_REPLY: unknown flags");
		return 0;
	}
	if (m->tail_len != 0)
		return bad(why, "a message that is too long");
	if (m->type != CHANNEL_RDMA_ADOPT)
		return 0;
	if (adopt->qid == 0 || adopt->sqsize == 0 || adopt->flags & ~CHANNEL_ADOPT_SQ_FLOW_CONTROL)
		return bad(why, "RDMA_ADOPT: QID and SQSIZE are at least 1, flags are known ones");
	if (adopt->flags & CHANNEL_ADOPT_SQ_FLOW_CONTROL && adopt->sqhd > adopt->sqsize)
		return bad(why, "RDMA_ADOPT: SQHD beyond SQSIZE");
	if (!memchr(adopt->peer, 0, sizeof(adopt->peer)))
		return bad(why, "RDMA_ADOPT: peer is not terminated");
	return 0;
}

static size_t fixed_part(uint16_t type)
{
	static const struct channel_message *m;

	switch (type) {
	case CHANNEL_HELLO:
		return sizeof(m->u.hello);
	case CHANNEL_ADOPT:
		return sizeof(m->u.adopt);
	case CHANNEL_UPCALL_DONE:
		return sizeof(m->u.done);
	case CHANNEL_RDMA_FETCH:
		return sizeof(m->u.fetch);
	case CHANNEL_RDMA_REPLY:
		return sizeof(m->u.reply);
	case CHANNEL_RDMA_ADOPT:
		return sizeof(m->u.rdma_adopt);
	case CHANNEL_RDMA_CLOSE:
		return sizeof(m->u.close);
	default:
		return 0;
	}
}

int channel_check(const void *packet, size_t len, unsigned nfds, struct channel_message *message, const char **why)
{
	struct channel_header header;
	size_t fixed;

	if (len < sizeof(header) || len > CHANNEL_BYTES_MAX)
		return bad(why, "a packet of impossible length");
	memcpy(&header, packet, sizeof(header));
	if (header.magic != CHANNEL_MAGIC || header.length != len || header.reserved != 0)
		return bad(why, "not a message of the capsule channel");
	if (header.version != CHANNEL_VERSION) {
		*why = "another version of the capsule channel";
		return -EPROTONOSUPPORT;
	}
	fixed = fixed_part(header.type);
	if (fixed == 0)
		return bad(why, "a message of an unknown type");
	len -= sizeof(header);
	if (len < fixed)
		return bad(why, "a message that is too short");
	memset(message, 0, sizeof(*message));
	message->type = (enum channel_type)header.type;
	memcpy(&message->u, (const char *)packet + sizeof(header), fixed);
	message->tail = (const char *)packet + sizeof(header) + fixed;
	message->tail_len = len - fixed;
	if (message->type == CHANNEL_ADOPT)
		return check_adopt(message, nfds, why);
	if (nfds != 0)
		return bad(why, "a descriptor with a message that takes none");
	if (message->type >= CHANNEL_RDMA_CONNECTED)
		return check_rdma(message, why);
	if (message->tail_len != 0)
		return bad(why, "a message that is too long");
	if (message->type == CHANNEL_UPCALL_DONE) {
		const struct channel_upcall_done *done = &message->u.done;

		if (done->flags & ~(CHANNEL_DONE_DNR | CHANNEL_DONE_CLOSE) || done->status > 0x7ff)
			return bad(why, "UPCALL_DONE: unknown flags or an impossible status");
	}
	return 0;
}
