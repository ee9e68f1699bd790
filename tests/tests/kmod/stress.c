/*
 * Everything at once, for a while: processes of jobs fork and end, others look them up, read /proc/gridos, move bytes
 * between files and sockets, and ask the daemon, which answers, is killed and comes again, while somebody unloads the
 * module and loads it again.
 *
 * Nothing has a file of it open for long, or it could not be unloaded. What there is not at the moment is no failure.
 * Each of them has to get on, and unloading has to succeed now and then.
 */
#define _GNU_SOURCE
#include "daemon.h"
#include "sockets.h"

#include <sys/syscall.h>
#include <sys/time.h>

#ifndef SECONDS
#define SECONDS 25
#endif

static double end;
static uint64_t state;

static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

enum actor { FORKER, LOOKER, READER, CALLER, DAEMON, MOVER, LOADER, ACTORS };
static const char *const names[ACTORS] = { "forks", "lookups", "reads", "answered calls", "daemons", "transfers", "unloads" };
static unsigned int *done;

static void did(enum actor actor)
{
	__atomic_fetch_add(&done[actor], 1, __ATOMIC_RELAXED);
}

/* The device, or -1 where there is none at the moment. */
static int try_device(void)
{
	int fd = open(GRIDOS_DEVICE, O_RDWR | O_CLOEXEC);

	must(fd >= 0 || errno == ENOENT || errno == ENODEV || errno == ENXIO);
	return fd;
}

/* A job's process: the daemon registers it, if it finds it, and then it has children and grandchildren. */
static void forks(void)
{
	while (now() < end) {
		pid_t pid = fork();

		must(pid >= 0);
		if (!pid) {
			if (rnd() % 2 && !fork())
				_exit(0);
			_exit(0);
		}
		must(waitpid(pid, NULL, 0) == pid);
		did(FORKER);
	}
}

static void looks(const pid_t *forkers, int count)
{
	while (now() < end) {
		int fd = try_device();
		uint64_t gpid;
		pid_t pid;

		if (fd < 0)
			continue;
		for (int i = 0; i < 20; i++) {
			if (gpid_of(fd, rnd() % 2 ? forkers[rnd() % count] : (pid_t)(1 + rnd() % 32768), &gpid) == 0) {
				must(GRIDOS_GPID_NODE(gpid) == NODE);
				if (pid_of(fd, gpid, &pid) < 0)
					must(errno == ESRCH);
				did(LOOKER);
			} else {
				must(errno == ESRCH);
			}
			self(fd);
		}
		close(fd);
		poll(NULL, 0, rnd() % 10);
	}
}

static void reads(void)
{
	static const char *const files[] = { "version", "self", "nodes", "jobs", "gpids", "io" };
	char path[64], bytes[512];

	while (now() < end) {
		int fd;

		snprintf(path, sizeof(path), GRIDOS_PROC "/%s", files[rnd() % 6]);
		fd = open(path, O_RDONLY);
		if (fd < 0) {
			must(errno == ENOENT || errno == ENODEV || errno == EINVAL);
			continue;
		}
		for (;;) {
			ssize_t got = read(fd, bytes, 1 + rnd() % sizeof(bytes));

			/* The module went, and the file is as if it had been closed. */
			must(got >= 0 || errno == EIO || errno == ENODEV);
			if (got <= 0)
				break;
			did(READER);
		}
		close(fd);
	}
}

static void on_signal(int signal)
{
}

static void asks(void)
{
	struct sigaction action = { .sa_handler = on_signal };

	sigaction(SIGALRM, &action, NULL);
	while (now() < end) {
		struct itimerval timer = { .it_value.tv_usec = 1 + rnd() % 20000 };
		int fd = try_device(), text;
		char out[8];
		uint32_t len = sizeof(out);

		if (fd < 0)
			continue;
		if (rnd() % 2)
			setitimer(ITIMER_REAL, &timer, NULL);
		if (ask(fd, 300, rnd() % 2, 1 + rnd() % 10, "question", 8, out, &len) == 0) {
			must(len == 6 && !memcmp(out, "answer", 6));
			did(CALLER);
		} else {
			must(errno == EAGAIN || errno == EINTR || errno == ETIMEDOUT || errno == EDQUOT);
		}
		close(fd);
		text = open(GRIDOS_PROC "/control", O_RDWR | O_NONBLOCK);
		if (text >= 0) {
			if (write(text, "status", 6) < 0)
				must(errno == EAGAIN || errno == EINTR || errno == EDQUOT);
			close(text);
		}
		setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
		poll(NULL, 0, rnd() % 10);
	}
}

/* A daemon that registers whom it is told, publishes, answers, and dies in the middle. */
static void is_daemon(const pid_t *forkers, int count)
{
	struct gridos_node node = { .number = 1, .name = "node" };
	struct gridos_publish publish = { .size = sizeof(publish), .table = GRIDOS_OP_NODES, .records = (uintptr_t)&node,
					  .record_size = sizeof(node), .count = 1 };
	struct pollfd poll_fd = { .events = POLLIN };
	int fd = try_device();
	uint64_t gpid;

	if (fd < 0)
		_exit(0);
	poll_fd.fd = fd;
	must(attach(fd) == 0);
	must(range(fd, 1, UINT32_MAX, NULL) == 0);
	did(DAEMON);
	for (int i = 0; i < count; i++) {
		if (reg(fd, forkers[i], &gpid) < 0)
			must(errno == EEXIST || errno == ESRCH);
	}
	for (int i = rnd() % 30; i > 0; i--) {
		struct incoming *request;

		must(ioctl(fd, GRIDOS_IOC(GRIDOS_OP_PUBLISH), &publish) == 0);
		if (rnd() % 4 == 0) {
			uint64_t other = GRIDOS_GPID(NODE, 1 + rnd() % 100);

			if (set_gpid(fd, forkers[rnd() % count], other) < 0)
				must(errno == EEXIST || errno == ESRCH || errno == EINVAL);
		}
		if (poll(&poll_fd, 1, 20) == 0)
			continue;
		request = next_request(fd);
		if (request->head.id && request->head.op >= GRIDOS_OP_COMMAND && rnd() % 8 &&
		    answer(fd, request->head.id, 0, "answer", 6) < 0)
			must(errno == ENOENT);
	}
	if (rnd() % 2)
		kill(getpid(), SIGKILL);
}

static void daemons(const pid_t *forkers, int count)
{
	while (now() < end) {
		pid_t pid = fork();

		must(pid >= 0);
		if (!pid) {
			is_daemon(forkers, count);
			_exit(0);
		}
		must(waitpid(pid, NULL, 0) == pid);
		must(!*complaint);
		rnd();
		/* So that there are times without a daemon, in which the module can go. */
		poll(NULL, 0, rnd() % 100);
	}
}

/* A file to a socket and from it to another, in pieces of which some are read by hand, and some posted. */
static void moves_once(int fd, int from, int to)
{
	struct gridos_io_wait result;
	uint64_t at = 0, got = 0;
	int ends[2];
	uint32_t a, b;

	connected(ends);
	a = managed(fd, ends[0]);
	b = managed(fd, ends[1]);
	while (got < 200000) {
		int64_t moved = io(fd, GRIDOS_OP_IO_SEND, a, GRIDOS_IO_NOWAIT, 0, from, at, rnd() % 50000);

		must(moved >= 0 || errno == EAGAIN);
		at += moved > 0 ? moved : 0;
		switch (rnd() % 3) {
		case 0:
			moved = recv(ends[1], piece, rnd() % 5000, MSG_DONTWAIT);
			must(moved < 0 || is_filled(piece, got, moved));
			if (moved > 0)
				must(pwrite(to, piece, moved, got) == moved);
			break;
		case 1:
			must(post(fd, b, 0, to, got, NULL, rnd() % 50000) > 0);
			if (rnd() % 2)
				poll(NULL, 0, rnd() % 3);
			must(io_wait(fd, b, GRIDOS_IO_CANCEL, 0, &result, 0) == 0);
			must(!result.error || result.error == -ECANCELED);
			moved = result.done;
			break;
		default:
			moved = io(fd, GRIDOS_OP_IO_RECV, b, GRIDOS_IO_NOWAIT, 0, to, got, rnd() % 50000);
			must(moved >= 0 || errno == EAGAIN);
		}
		got += moved > 0 ? moved : 0;
		must(got <= at);
	}
	must(file_has(to, 0, 0, got));
	close(ends[0]);
	close(ends[1]);
	/* Something is under way when the file is closed. */
	if (rnd() % 2)
		post(fd, b, 0, to, 0, NULL, 1000000);
}

static void moves(void)
{
	int from = filled_file(1 << 20), to = empty_file();

	while (now() < end) {
		int fd = try_device();

		if (fd < 0)
			continue;
		moves_once(fd, from, to);
		did(MOVER);
		close(fd);
		poll(NULL, 0, rnd() % 50);
	}
}

static void loads(void)
{
	while (now() < end) {
		int file;

		if (syscall(SYS_delete_module, "gridos", O_NONBLOCK) < 0) {
			must(errno == EAGAIN || errno == EBUSY || errno == EWOULDBLOCK);
			poll(NULL, 0, rnd() % 3);
			continue;
		}
		did(LOADER);
		file = open("/gridos.ko", O_RDONLY);
		must(file >= 0);
		must(syscall(SYS_finit_module, file, "", 0) == 0);
		close(file);
		/* Long enough for a daemon to come. */
		poll(NULL, 0, rnd() % 600);
	}
}

static pid_t acts(enum actor actor, const pid_t *forkers, int count)
{
	pid_t pid = fork();

	must(pid >= 0);
	if (pid)
		return pid;
	state ^= getpid() * 0x9e3779b97f4a7c15;
	switch (actor) {
	case FORKER:
		forks();
		break;
	case LOOKER:
		looks(forkers, count);
		break;
	case READER:
		reads();
		break;
	case CALLER:
		asks();
		break;
	case DAEMON:
		daemons(forkers, count);
		break;
	case MOVER:
		moves();
		break;
	default:
		loads();
	}
	_exit(0);
}

static void stressed(void)
{
	static const enum actor actors[] = { FORKER, FORKER, FORKER, LOOKER, READER, CALLER, CALLER, DAEMON, MOVER, LOADER };
	const int count = sizeof(actors) / sizeof(*actors);
	pid_t pids[16];
	double last;

	done = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	end = now() + SECONDS;
	for (int i = 0; i < count; i++)
		pids[i] = acts(actors[i], pids, 3);
	for (int i = 0; i < count; i++)
		reap(pids[i]);
	printf("FIGURE stress:");
	for (int i = 0; i < ACTORS; i++)
		printf(" %u %s%s", done[i], names[i], i + 1 < ACTORS ? "," : "\n");
	fflush(stdout);
	for (int i = 0; i < ACTORS; i++)
		must(done[i] > 0);
	/* The last of those who ended without being waited for. */
	last = now() + 10;
	while (told("processes ") && now() < last)
		poll(NULL, 0, 10);
	must(told("processes ") == 0);
}

static const struct scenario scenarios[] = { { "stressed", stressed } };

int main(void)
{
	loopback_up();
	state = (uint64_t)time(NULL) << 20 ^ getpid();
	return run(scenarios, 1);
}
