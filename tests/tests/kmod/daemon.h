/* The daemon's side of calls, and callers in processes of their own. */
#ifndef DAEMON_H
#define DAEMON_H

#include "grid.h"

struct incoming {
	struct gridos_request head;
	char bytes[GRIDOS_CALL_MAX];
};

/* The next request; waits for it. */
static inline struct incoming *next_request(int fd)
{
	static struct incoming request;
	ssize_t got = read(fd, &request, sizeof(request));

	must(got >= (ssize_t)sizeof(request.head));
	must(request.head.size == sizeof(request.head));
	must(got == (ssize_t)(sizeof(request.head) + request.head.len));
	return &request;
}

static inline ssize_t answer(int fd, uint64_t id, int error, const void *bytes, uint32_t len)
{
	static struct {
		struct gridos_answer head;
		char bytes[GRIDOS_CALL_MAX + 1];
	} message;

	message.head = (struct gridos_answer){ .size = sizeof(message.head), .error = error, .id = id, .len = len };
	memcpy(message.bytes, bytes, len);
	return write(fd, &message, sizeof(message.head) + len);
}

/* Whether there is something to read. */
static inline int readable(int fd)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

	must(poll(&poll_fd, 1, 0) >= 0);
	return !!(poll_fd.revents & POLLIN);
}

/* A caller in a process of its own: what it asks, and what it has to get. */
struct caller {
	uint32_t op, flags, ms;
	const char *in;
	int error;
	const char *out;
};

static inline void call(void *data)
{
	const struct caller *caller = data;
	char out[256] = { 0 };
	uint32_t len = sizeof(out);

	leave_daemon();
	gives(caller->error,
	      ask(device(), caller->op, caller->flags, caller->ms, caller->in, strlen(caller->in), out, &len));
	must(len == strlen(caller->out) && !memcmp(out, caller->out, len));
}

static inline pid_t calls(uint32_t op, uint32_t flags, uint32_t ms, const char *in, int error, const char *out)
{
	struct caller caller = { .op = op, .flags = flags, .ms = ms, .in = in, .error = error, .out = out };

	return spawn(call, &caller);
}

#endif
