/* SPDX-License-Identifier: BSD-3-Clause */
#include "channel.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "channel_frame.h"
#include "log.h"
#include "loop.h"
#include "peer.h"

#define FDS_MAX 8               /* descriptors that one packet is looked for; all but the expected one are closed */
#define UNSENT_BYTES_MAX (8 << 20) /* a control plane that does not read is not waited for any longer */
#define STATUS_COMMAND_INTERRUPTED 0x021 /* generic: the host may retry */

struct packet {
	struct packet *next;
	size_t len;
	char bytes[];
};

struct upcall {
	struct upcall *next;
	uint64_t token;
};

static struct channel_options options;
static struct loop_source link_source = {.fd = -1};
static struct loop_source listen_source = {.fd = -1};
static bool greeted; /* our HELLO has been sent: from now on messages go out */
static bool helloed; /* theirs has come */
static unsigned reset_generation;
static struct packet *unsent, **unsent_last = &unsent;
static size_t unsent_bytes;
static struct upcall *upcalls; /* with the control plane, not answered yet */
static char receive_buffer[CHANNEL_BYTES_MAX + 1];

/* -- the end ------------------------------------------------------------------------------------------------------- */

static void interrupt_upcalls(void)
{
	while (upcalls) {
		struct upcall *call = upcalls;

		upcalls = call->next;
		dp_upcall_complete(call->token, STATUS_COMMAND_INTERRUPTED, false, 0, false);
		free(call);
	}
}

static void drop_link(void)
{
	if (link_source.fd < 0)
		return;
	loop_remove(&link_source);
	close(link_source.fd);
	link_source.fd = -1;
	greeted = helloed = false;
	reset_generation++;
	while (unsent) {
		struct packet *packet = unsent;

		unsent = packet->next;
		free(packet);
	}
	unsent_last = &unsent;
	unsent_bytes = 0;
	interrupt_upcalls();
}

static void lose(const char *why)
{
	drop_link();
	if (options.lost)
		options.lost(why);
}

void channel_close(void)
{
	drop_link();
	if (listen_source.fd >= 0) {
		loop_remove(&listen_source);
		close(listen_source.fd);
		listen_source.fd = -1;
	}
}

/* -- out ----------------------------------------------------------------------------------------------------------- */

static int send_packet(const struct iovec *parts, int count, int fd)
{
	union {
		char buffer[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};

	if (fd >= 0) {
		message.msg_control = control.buffer;
		message.msg_controllen = sizeof(control.buffer);
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);

		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof(int));
	}
	return sendmsg(link_source.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void keep_unsent(const struct iovec *parts, int count, size_t len)
{
	struct packet *packet = unsent_bytes + len <= UNSENT_BYTES_MAX ? malloc(sizeof(*packet) + len) : NULL;

	if (!packet) {
		lose("it does not read its messages");
		return;
	}
	packet->next = NULL;
	packet->len = 0;
	for (int i = 0; i < count; i++) {
		memcpy(packet->bytes + packet->len, parts[i].iov_base, parts[i].iov_len);
		packet->len += parts[i].iov_len;
	}
	if (!unsent)
		loop_change(&link_source, EPOLLIN | EPOLLOUT);
	*unsent_last = packet;
	unsent_last = &packet->next;
	unsent_bytes += len;
}

/* Sends, or keeps for later, one message. Without a control plane that has greeted it is dropped. */
static void put(enum channel_type type, const void *fixed, size_t fixed_len, const void *tail, size_t tail_len)
{
	const size_t len = sizeof(struct channel_header) + fixed_len + tail_len;
	struct channel_header header = {
		.magic = CHANNEL_MAGIC, .version = CHANNEL_VERSION, .type = type, .length = (uint32_t)len};
	const struct iovec parts[] = {{&header, sizeof(header)}, {(void *)fixed, fixed_len}, {(void *)tail, tail_len}};

	if (link_source.fd < 0 || (!greeted && type != CHANNEL_HELLO))
		return;
	const bool with_fd = type == CHANNEL_HELLO && options.activity_fd >= 0;
	int rc = unsent ? -EAGAIN : send_packet(parts, 3, with_fd ? options.activity_fd : -1);

	if (rc == -EAGAIN && type != CHANNEL_HELLO)
		keep_unsent(parts, 3, len);
	else if (rc < 0)
		lose(strerror(-rc));
}

static void flush(void)
{
	while (unsent) {
		struct packet *packet = unsent;
		const struct iovec part = {packet->bytes, packet->len};
		int rc = send_packet(&part, 1, -1);

		if (rc == -EAGAIN)
			return;
		if (rc < 0) {
			lose(strerror(-rc));
			return;
		}
		unsent = packet->next;
		unsent_bytes -= packet->len;
		free(packet);
	}
	unsent_last = &unsent;
	loop_change(&link_source, EPOLLIN);
}

static void put_text(enum channel_type type, const void *fixed, size_t fixed_len, const char *text)
{
	const size_t len = strlen(text);

	put(type, fixed, fixed_len, text, len < CHANNEL_RESPONSE_MAX ? len : CHANNEL_RESPONSE_MAX);
}

static void say_hello(void)
{
	const struct channel_hello hello = {.features = 0, .pid = (uint32_t)getpid()};

	put_text(CHANNEL_HELLO, &hello, sizeof(hello), options.rpc_socket);
	greeted = link_source.fd >= 0;
}

void channel_queue_closed(struct dp_queue_key key, const char *reason)
{
	const struct channel_queue_closed closed = {.key = key.ctrlr, .qid = key.qid};

	put_text(CHANNEL_QUEUE_CLOSED, &closed, sizeof(closed), reason);
}

void channel_bdev_changed(const char *name, bool present)
{
	const struct channel_bdev_changed changed = {.present = present};

	put_text(CHANNEL_BDEV_CHANGED, &changed, sizeof(changed), name);
}

void channel_pool_lost(const char *name, const char *why)
{
	put_text(CHANNEL_POOL_LOST, name, strlen(name) + 1, why);
}

void channel_upcall(struct dp_queue_key key, uint64_t token, const uint8_t sqe[64], const void *data, size_t len)
{
	struct channel_upcall message = {
		.token = token, .key = key.ctrlr, .qid = key.qid, .data_len = (uint32_t)len};
	const bool fits = len <= CHANNEL_BYTES_MAX - sizeof(struct channel_header) - sizeof(message);
	struct upcall *call = greeted && fits ? malloc(sizeof(*call)) : NULL;

	if (!call) {
		dp_upcall_complete(token, STATUS_COMMAND_INTERRUPTED, false, 0, false);
		return;
	}
	memcpy(message.sqe, sqe, sizeof(message.sqe));
	*call = (struct upcall){.next = upcalls, .token = token};
	upcalls = call; /* before put: if that loses the link, the call is among those interrupted */
	put(CHANNEL_UPCALL, &message, sizeof(message), data, len);
}

/* -- NVMe/RDMA ----------------------------------------------------------------------------------------------------- */

static void rdma_connected(const struct dp_rdma_connected *from)
{
	struct channel_rdma_connected message = {.conn = from->conn,
						 .port = from->local_port,
						 .adrfam = from->adrfam,
						 .peer_port = from->peer_port,
						 .qid = from->qid,
						 .hsqsize = from->hsqsize,
						 .hrqsize = from->hrqsize,
						 .cntlid = from->cntlid};

	memcpy(message.local, from->local, sizeof(message.local));
	memcpy(message.peer, from->peer, sizeof(message.peer));
	put(CHANNEL_RDMA_CONNECTED, &message, sizeof(message), NULL, 0);
}

static void rdma_capsule(uint64_t conn, const uint8_t sqe[64], const void *icd, uint32_t icd_len)
{
	struct channel_rdma_capsule message = {.conn = conn, .icd_len = icd_len};

	memcpy(message.sqe, sqe, sizeof(message.sqe));
	put(CHANNEL_RDMA_CAPSULE, &message, sizeof(message), icd, icd_len);
}

static void rdma_data(uint64_t conn, uint16_t cid, int rc, const void *data, uint32_t len)
{
	const struct channel_rdma_data message = {.conn = conn, .cid = cid, .rc = (int16_t)rc};

	put(CHANNEL_RDMA_DATA, &message, sizeof(message), data, len);
}

static void rdma_closed(uint64_t conn, const char *reason)
{
	const struct channel_rdma_conn message = {.conn = conn};

	put_text(CHANNEL_RDMA_CLOSED, &message, sizeof(message), reason);
}

const struct dp_rdma_events channel_rdma_events = {
	.connected = rdma_connected,
	.capsule = rdma_capsule,
	.data = rdma_data,
	.closed = rdma_closed,
};

static void rdma_adopted(uint64_t token, int rc, const char *err)
{
	const struct channel_adopted answer = {.token = token, .rc = rc};

	put_text(CHANNEL_ADOPTED, &answer, sizeof(answer), err);
}

static void on_rdma_adopt(const struct channel_rdma_adopt *from)
{
	const struct dp_queue queue = {
		.key = {.ctrlr = from->key, .qid = from->qid},
		.fd = -1,
		.sqsize = from->sqsize,
		.sqhd = from->sqhd,
		.sq_flow_control = from->flags & CHANNEL_ADOPT_SQ_FLOW_CONTROL,
		.icd_max = from->icd_max,
		.slot = from->slot,
		.peer = from->peer,
	};

	if (from->slot >= options.activity_slots)
		rdma_adopted(from->token, -ERANGE, "no such activity slot");
	else
		dp_rdma_adopt(from->conn, &queue, from->cqe, from->token, rdma_adopted);
}

static void on_rdma(const struct channel_message *message)
{
	const struct channel_rdma_reply *reply = &message->u.reply;

	switch (message->type) {
	case CHANNEL_RDMA_FETCH:
		dp_rdma_fetch(message->u.fetch.conn, message->u.fetch.cid, message->u.fetch.length);
		break;
	case CHANNEL_RDMA_REPLY:
		dp_rdma_reply(reply->conn, reply->cqe, reply->flags, reply->offset, message->tail,
			      (uint32_t)message->tail_len);
		break;
	case CHANNEL_RDMA_ADOPT:
		on_rdma_adopt(&message->u.rdma_adopt);
		break;
	default:
		dp_rdma_close(message->u.close.conn);
	}
}

/* -- in ------------------------------------------------------------------------------------------------------------ */

struct reset {
	unsigned generation;
};

static void reset_done(void *arg, int rc)
{
	struct reset *reset = arg;

	if (rc == 0 && reset->generation == reset_generation && link_source.fd >= 0)
		say_hello();
	free(reset);
}

static void on_hello(const struct channel_hello *hello)
{
	struct reset *reset;

	helloed = true;
	log_info("channel.hello", "control plane of process %u", hello->pid);
	if (!(hello->features & CHANNEL_FEATURE_RESET) || !options.reset) {
		say_hello();
		return;
	}
	reset = malloc(sizeof(*reset));
	if (!reset) {
		lose("no memory");
		return;
	}
	reset->generation = reset_generation;
	options.reset(reset_done, reset);
}

/* The descriptor is the engine's after 0. */
static int adopt(const struct channel_message *message, int fd, char err[DP_ERR_MAX])
{
	const struct channel_adopt *from = &message->u.adopt;
	const struct dp_queue queue = {
		.key = {.ctrlr = from->key, .qid = from->qid},
		.fd = fd,
		.sqsize = from->sqsize,
		.sqhd = from->sqhd,
		.sq_flow_control = from->flags & CHANNEL_ADOPT_SQ_FLOW_CONTROL,
		.c2h_success = from->flags & CHANNEL_ADOPT_C2H_SUCCESS,
		.hdgst = from->flags & CHANNEL_ADOPT_HDGST,
		.ddgst = from->flags & CHANNEL_ADOPT_DDGST,
		.hpda = from->hpda,
		.cpda = from->cpda,
		.maxr2t = from->maxr2t,
		.maxh2cdata = from->maxh2cdata,
		.icd_max = from->icd_max,
		.slot = from->slot,
		.response = message->tail,
		.response_len = message->tail_len,
		.peer = from->peer,
	};
	int type = 0;
	socklen_t size = sizeof(type);

	if (from->slot >= options.activity_slots) {
		snprintf(err, DP_ERR_MAX, "activity slot %u of %u", from->slot, options.activity_slots);
		return -ERANGE;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_STREAM) {
		snprintf(err, DP_ERR_MAX, "the descriptor is no stream socket");
		return -ENOTSOCK;
	}
	return dp_queue_adopt(&queue, err);
}

static int on_adopt(const struct channel_message *message, int fd)
{
	char err[DP_ERR_MAX] = "";
	const struct channel_adopted answer = {.token = message->u.adopt.token, .rc = adopt(message, fd, err)};

	put_text(CHANNEL_ADOPTED, &answer, sizeof(answer), err);
	return answer.rc;
}

static int on_upcall_done(const struct channel_upcall_done *done)
{
	for (struct upcall **at = &upcalls; *at; at = &(*at)->next) {
		struct upcall *call = *at;

		if (call->token != done->token)
			continue;
		*at = call->next;
		free(call);
		dp_upcall_complete(done->token, done->status, done->flags & CHANNEL_DONE_DNR, done->dw0,
				   done->flags & CHANNEL_DONE_CLOSE);
		return 0;
	}
	return -ENOENT;
}

/* One packet and its descriptors, every one of which is closed here or belongs to the engine afterwards. */
static void handle(const void *bytes, size_t len, int *fds, unsigned nfds)
{
	struct channel_message message;
	const char *why = "";
	int rc = channel_check(bytes, len, nfds, &message, &why);
	bool taken = false;

	if (rc == 0 && !helloed && message.type != CHANNEL_HELLO) {
		rc = -EPROTO;
		why = "a message before HELLO";
	} else if (rc == 0 && message.type == CHANNEL_HELLO) {
		if (helloed) {
			rc = -EPROTO;
			why = "a second HELLO";
		} else {
			on_hello(&message.u.hello);
		}
	} else if (rc == 0 && message.type == CHANNEL_ADOPT) {
		taken = on_adopt(&message, fds[0]) == 0;
	} else if (rc == 0 && message.type >= CHANNEL_RDMA_CONNECTED) {
		on_rdma(&message);
	} else if (rc == 0 && on_upcall_done(&message.u.done) < 0) {
		rc = -EPROTO;
		why = "UPCALL_DONE for no upcall";
	}
	for (unsigned i = taken ? 1 : 0; i < nfds; i++)
		close(fds[i]);
	if (rc == -EPROTONOSUPPORT && !helloed)
		say_hello();
	if (rc < 0) {
		log_error("channel.malformed", "%s", why);
		lose(why);
	}
}

static unsigned take_fds(struct msghdr *message, int fds[FDS_MAX])
{
	unsigned count = 0;

	for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
		if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
			continue;
		const size_t here = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		for (size_t i = 0; i < here; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(fd));
			if (count < FDS_MAX)
				fds[count++] = fd;
			else
				close(fd);
		}
	}
	return count;
}

static void receive(void)
{
	union {
		char buffer[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec part = {receive_buffer, sizeof(receive_buffer)};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.buffer, .msg_controllen = sizeof(control.buffer)};
	int fds[FDS_MAX];
	ssize_t got = recvmsg(link_source.fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got < 0) {
		lose(strerror(errno));
		return;
	}
	unsigned nfds = take_fds(&message, fds);

	if (got == 0) { /* the end, or an empty packet, which may have descriptors */
		for (unsigned i = 0; i < nfds; i++)
			close(fds[i]);
		lose("it has closed the channel");
		return;
	}
	if (message.msg_flags & MSG_CTRUNC)
		log_warning("channel.malformed", "more descriptors than a packet can have, or no room for them");
	handle(receive_buffer, (size_t)got, fds, nfds);
}

static void link_ready(struct loop_source *source, uint32_t events)
{
	(void)source;
	if (events & EPOLLOUT)
		flush();
	if (link_source.fd >= 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		receive();
}

/* -- the beginning ------------------------------------------------------------------------------------------------- */

int channel_open_fd(int fd, const struct channel_options *given)
{
	options = *given;
	link_source = (struct loop_source){.fd = fd, .ready = link_ready};
	return loop_add(&link_source, EPOLLIN);
}

static void listen_ready(struct loop_source *source, uint32_t events)
{
	int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	if (fd < 0)
		return;
	if (!peer_allowed(fd)) {
		log_warning("channel.refused", "a process of another user");
	} else if (link_source.fd >= 0) {
		log_warning("channel.refused", "there is a control plane already");
	} else if (channel_open_fd(fd, &options) == 0) {
		return;
	}
	close(fd);
}

int channel_listen(const char *path, const struct channel_options *given, char err[DP_ERR_MAX])
{
	int fd = peer_listen(path, SOCK_SEQPACKET, err);

	if (fd < 0)
		return fd;
	options = *given;
	listen_source = (struct loop_source){.fd = fd, .ready = listen_ready};
	return loop_add(&listen_source, EPOLLIN);
}
