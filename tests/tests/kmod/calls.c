/* Calls to the daemon: answered, late, interrupted, and left without a daemon. */
#define _GNU_SOURCE
#include "daemon.h"

static void *volatile nowhere = (void *)8;

#define LONG 60000 /* milliseconds: nothing that the tests wait for takes so long */

static void answered(void)
{
	int fd = daemon_fd();
	struct incoming *request;
	uint64_t gpid;
	pid_t pid;

	gives(0, reg(fd, getpid(), &gpid));
	pid = calls(GRIDOS_OP_MIGRATE, 0, LONG, "12.5 node3", 0, "moved");
	request = next_request(fd);
	must(request->head.op == GRIDOS_OP_MIGRATE && request->head.pid == pid);
	must(request->head.uid == 0 && request->head.gid == 0 && request->head.flags == 0);
	must(request->head.gpid == gpid + 1 && request->head.room == 256);
	must(request->head.len == 10 && !memcmp(request->bytes, "12.5 node3", 10));
	gives(ENOENT, answer(fd, request->head.id + 1, 0, "", 0));
	must(answer(fd, request->head.id, 0, "moved", 5) == sizeof(struct gridos_answer) + 5);
	gives(ENOENT, answer(fd, request->head.id, 0, "again", 5));
	reap(pid);

	/* An error may have bytes, too. */
	pid = calls(300, 0, LONG, "", ENOSPC, "no node has room");
	request = next_request(fd);
	must(request->head.op == 300 && request->head.len == 0);
	must(answer(fd, request->head.id, -ENOSPC, "no node has room", 16) > 0);
	reap(pid);

	/* Two at once, the later one first. */
	pid = calls(300, 0, LONG, "a", 0, "for a");
	request = next_request(fd);
	uint64_t first = request->head.id;
	pid_t other = calls(300, 0, LONG, "b", 0, "for b");

	request = next_request(fd);
	must(answer(fd, request->head.id, 0, "for b", 5) > 0);
	reap(other);
	must(answer(fd, first, 0, "for a", 5) > 0);
	reap(pid);
	must(!readable(fd));
}

static void malformed(void)
{
	char head[sizeof(struct gridos_request)];
	struct gridos_answer message = { .size = sizeof(message) };
	uint32_t len = GRIDOS_CALL_MAX + 1;
	int fd = daemon_fd();
	struct incoming *request;
	pid_t pid;

	gives(EINVAL, ask(fd, GRIDOS_OP_CALL, 0, 1, "", 0, NULL, NULL));
	gives(EINVAL, ask(fd, 300, 2, 1, "", 0, NULL, NULL));
	gives(EMSGSIZE, ask(fd, 300, 0, 1, "", GRIDOS_CALL_MAX + 1, NULL, NULL));
	gives(EMSGSIZE, ask(fd, 300, 0, 1, "", 0, head, &len));
	gives(EFAULT, ask(fd, 300, 0, 1, nowhere, 100, NULL, NULL));

	pid = calls(300, 0, LONG, "question", 0, "answer");
	gives(EINVAL, read(fd, head, sizeof(head) - 1));
	while (!readable(fd))
		poll(NULL, 0, 1);
	/* There is no room for its bytes, and then none at all: it can be read nevertheless. */
	gives(EINVAL, read(fd, head, sizeof(head)));
	gives(EFAULT, read(fd, nowhere, sizeof(struct incoming)));
	request = next_request(fd);
	must(request->head.flags == 0);

	gives(EINVAL, write(fd, &message, sizeof(message) - 1));
	message = (struct gridos_answer){ .size = sizeof(message), .id = request->head.id, .error = 1 };
	gives(EINVAL, write(fd, &message, sizeof(message)));
	message.error = -512;
	gives(EINVAL, write(fd, &message, sizeof(message)));
	message = (struct gridos_answer){ .size = sizeof(message), .id = request->head.id, .len = 1 };
	gives(EINVAL, write(fd, &message, sizeof(message)));
	message = (struct gridos_answer){ .size = sizeof(message) + 1, .id = request->head.id };
	gives(EINVAL, write(fd, &message, sizeof(message)));
	message = (struct gridos_answer){ .size = sizeof(message) - 1, .id = request->head.id };
	gives(EINVAL, write(fd, &message, sizeof(message)));
	gives(EFAULT, write(fd, nowhere, sizeof(message)));
	/* The caller has no room for so much. */
	gives(EMSGSIZE, answer(fd, request->head.id, 0, complaint, 257));
	must(answer(fd, request->head.id, 0, "answer", 6) > 0);
	reap(pid);
}

static void timed_out(void)
{
	int fd = daemon_fd();
	struct incoming *request;
	uint64_t id;

	/* Unread: nothing is left of it. */
	reap(calls(300, 0, 50, "", ETIMEDOUT, ""));
	must(!readable(fd));

	pid_t pid = calls(300, 0, 300, "", ETIMEDOUT, "");

	id = next_request(fd)->head.id;
	request = next_request(fd);
	must(request->head.op == GRIDOS_OP_CANCEL && request->head.id == id && request->head.len == 0);
	gives(ENOENT, answer(fd, id, 0, "", 0));
	reap(pid);
	must(!readable(fd));
}

static void on_signal(int signal)
{
}

static void interruptible(void *data)
{
	/* Even where system calls begin again after it: what was asked for might be done twice. */
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	leave_daemon();
	sigaction(SIGUSR1, &action, NULL);
	gives(EINTR, ask(device(), 300, 0, LONG, data, strlen(data), NULL, NULL));
}

static void interrupted(void)
{
	int fd = daemon_fd();
	struct incoming *request;
	uint64_t id;
	pid_t pid;

	pid = spawn(interruptible, "read");
	id = next_request(fd)->head.id;
	kill(pid, SIGUSR1);
	request = next_request(fd);
	must(request->head.op == GRIDOS_OP_CANCEL && request->head.id == id);
	reap(pid);

	pid = spawn(interruptible, "unread");
	while (!readable(fd))
		poll(NULL, 0, 1);
	kill(pid, SIGUSR1);
	reap(pid);
	must(!readable(fd));

	/* Killed. */
	pid = spawn(interruptible, "killed");
	id = next_request(fd)->head.id;
	kill(pid, SIGKILL);
	must(waitpid(pid, NULL, 0) == pid);
	request = next_request(fd);
	must(request->head.op == GRIDOS_OP_CANCEL && request->head.id == id);
}

/* === Daemons that die === */

static int is_attached(void)
{
	struct gridos_version version = { .size = sizeof(version) };
	int fd = device();

	must(ioctl(fd, GRIDOS_IOC(GRIDOS_OP_VERSION), &version) == 0);
	close(fd);
	must(version.version == GRIDOS_UAPI_VERSION);
	return version.flags & GRIDOS_VERSION_DAEMON;
}

static void abandoned(void)
{
	pid_t reads, unread, pid;

	reap(calls(300, GRIDOS_CALL_NOWAIT, LONG, "", EAGAIN, ""));

	/* One that it has read, and one that it has not. */
	int fd = daemon_fd();

	must(is_attached());
	reads = calls(300, GRIDOS_CALL_NOWAIT, LONG, "", EAGAIN, "");
	next_request(fd);
	unread = calls(300, GRIDOS_CALL_NOWAIT, LONG, "", EAGAIN, "");
	while (!readable(fd))
		poll(NULL, 0, 1);
	close(fd);
	reap(reads);
	reap(unread);

	/* It dies. */
	pid = fork();
	if (!pid) {
		fd = daemon_fd();
		next_request(fd);
		kill(getpid(), SIGKILL);
	}
	while (!is_attached())
		poll(NULL, 0, 1);
	reap(calls(300, GRIDOS_CALL_NOWAIT, LONG, "", EAGAIN, ""));
	must(waitpid(pid, NULL, 0) == pid);
	must(!is_attached());
	must(strstr(proc_text("version", 4096), "daemon none"));
}

static void handed_on(void)
{
	struct incoming *request;
	pid_t first, second, third;
	uint64_t ids[3];
	int fd;

	/* Before there is any daemon. */
	first = calls(300, 0, LONG, "first", 0, "1");
	poll(NULL, 0, 50);
	fd = daemon_fd();
	request = next_request(fd);
	must(request->head.flags == 0 && !memcmp(request->bytes, "first", 5));
	ids[0] = request->head.id;
	second = calls(300, 0, LONG, "second", 0, "2");
	ids[1] = next_request(fd)->head.id;
	third = calls(300, 0, LONG, "third", ENOENT, "3");
	while (!readable(fd))
		poll(NULL, 0, 1);

	/* It goes, with two requests read, and one that is not. The next gets them in the same order. */
	close(fd);
	must(!is_attached());
	fd = daemon_fd();
	request = next_request(fd);
	must(request->head.id == ids[0] && request->head.flags == GRIDOS_REQUEST_AGAIN);
	must(request->head.len == 5 && !memcmp(request->bytes, "first", 5));
	request = next_request(fd);
	must(request->head.id == ids[1] && request->head.flags == GRIDOS_REQUEST_AGAIN);
	request = next_request(fd);
	ids[2] = request->head.id;
	must(request->head.flags == 0 && !memcmp(request->bytes, "third", 5));
	must(answer(fd, ids[2], -ENOENT, "3", 1) > 0);
	must(answer(fd, ids[0], 0, "1", 1) > 0);
	must(answer(fd, ids[1], 0, "2", 1) > 0);
	reap(first);
	reap(second);
	reap(third);

	/* Nobody comes: the time ends it. */
	close(fd);
	reap(calls(300, 0, 100, "", ETIMEDOUT, ""));
}

static void exclusive(void)
{
	struct gridos_attach args = { .size = sizeof(args), .version = GRIDOS_UAPI_VERSION + 1 };
	int fd = daemon_fd(), other = device(), reader = open(GRIDOS_DEVICE, O_RDONLY);
	struct pollfd poll_fd = { .fd = other, .events = POLLIN };
	uint64_t gpid;

	gives(EBUSY, attach(other));
	gives(EBUSY, attach(fd));
	gives(EPERM, reg(other, getpid(), &gpid));
	gives(EPERM, range(other, 1, 2, NULL));
	gives(EPERM, read(other, complaint, 4096));
	gives(EPERM, write(other, complaint, 24));
	must(poll(&poll_fd, 1, 0) == 1 && poll_fd.revents == POLLERR);
	close(other);
	must(is_attached());
	gives(0, reg(fd, getpid(), &gpid));
	close(fd);
	other = device();
	gives(EPROTONOSUPPORT, ioctl(other, GRIDOS_IOC(GRIDOS_OP_ATTACH), &args));
	gives(EBADF, attach(reader));
	gives(0, attach(other));
}

/* === /proc/gridos/control === */

static void commands(void *data)
{
	leave_daemon();

	int fd = proc("control", O_RDWR), other = proc("control", O_RDWR);
	char text[64];

	must(read(fd, text, sizeof(text)) == 0);
	must(write(fd, "status 12.5\n", 12) == 12);
	must(write(other, "quiet", 5) == 5);
	must(read(fd, text, 3) == 3 && !memcmp(text, "run", 3));
	must(read(fd, text, sizeof(text)) == 5 && !memcmp(text, "ning\n", 5));
	must(read(fd, text, sizeof(text)) == 0);
	must(read(other, text, sizeof(text)) == 0);
	gives(EPERM, write(fd, "kill 12.5\n", 10));
	must(read(fd, text, sizeof(text)) == 8 && !memcmp(text, "not you\n", 8));
	gives(EINVAL, write(fd, "", 0));
	gives(EINVAL, write(fd, "\n", 1));
	gives(EINVAL, write(fd, "a\nb\n", 4));
	gives(EINVAL, write(fd, "a\0b", 3));
	gives(EMSGSIZE, write(fd, complaint, 4097));
	gives(EFAULT, write(fd, nowhere, 10));
	gives(ESPIPE, pread(fd, text, 1, 0));
}

static void control(void)
{
	int fd = proc("control", O_RDWR | O_NONBLOCK);
	struct incoming *request;
	pid_t pid;

	gives(EAGAIN, write(fd, "status\n", 7));
	close(fd);
	fd = daemon_fd();
	pid = spawn(commands, NULL);
	request = next_request(fd);
	must(request->head.op == GRIDOS_OP_COMMAND && request->head.pid == pid);
	must(request->head.len == 11 && !memcmp(request->bytes, "status 12.5", 11));
	must(answer(fd, request->head.id, 0, "running\n", 8) > 0);
	request = next_request(fd);
	must(request->head.len == 5 && !memcmp(request->bytes, "quiet", 5));
	must(answer(fd, request->head.id, 0, "", 0) > 0);
	request = next_request(fd);
	must(answer(fd, request->head.id, -EPERM, "not you\n", 8) > 0);
	reap(pid);
	must(!readable(fd));
}

/* === /proc/gridos/pipes === */

static void reads_pipes(void *data)
{
	leave_daemon();

	int fd = proc("pipes", O_RDONLY), other = proc("pipes", O_RDONLY);
	char text[64];

	gives(EACCES, read(fd, text, sizeof(text)));
	/* Asked again, as it was refused; then the answer is there to the end, and nobody is asked. */
	must(read(fd, text, 4) == 4 && !memcmp(text, "pipe", 4));
	must(read(fd, text, sizeof(text)) == 2 && !memcmp(text, "1\n", 2));
	must(read(fd, text, sizeof(text)) == 0);
	must(read(fd, text, sizeof(text)) == 0);
	must(read(other, text, sizeof(text)) == 0);
	gives(ESPIPE, pread(fd, text, 1, 0));
}

static void pipes(void)
{
	int fd = proc("pipes", O_RDONLY | O_NONBLOCK);
	struct incoming *request;
	char text[8];
	pid_t pid;

	gives(EAGAIN, read(fd, text, sizeof(text)));
	close(fd);
	fd = daemon_fd();
	pid = spawn(reads_pipes, NULL);
	request = next_request(fd);
	must(request->head.op == GRIDOS_OP_COMMAND && request->head.pid == pid);
	must(request->head.len == 5 && !memcmp(request->bytes, "pipes", 5));
	must(answer(fd, request->head.id, -EACCES, "", 0) > 0);
	request = next_request(fd);
	must(request->head.len == 5 && !memcmp(request->bytes, "pipes", 5));
	must(answer(fd, request->head.id, 0, "pipe1\n", 6) > 0);
	request = next_request(fd);
	must(answer(fd, request->head.id, 0, "", 0) > 0);
	reap(pid);
	must(!readable(fd));
}

static const struct scenario scenarios[] = {
	{ "answered", answered },   { "malformed", malformed }, { "timed_out", timed_out }, { "interrupted", interrupted },
	{ "abandoned", abandoned }, { "handed_on", handed_on }, { "exclusive", exclusive }, { "control", control },
	{ "pipes", pipes },
};

int main(void)
{
	return run(scenarios, sizeof(scenarios) / sizeof(*scenarios));
}
