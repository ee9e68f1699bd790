/*
 * What the programs that test the module share: scenarios, each in a process of its own, and the operations.
 *
 * A scenario ends at the first thing that is not as it must be, and says where. Each says on the console how it went:
 * RESULT name=ok, or RESULT name=what was wrong.
 */
#ifndef GRID_H
#define GRID_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/gridos.h>

#define NOBODY 65534
#define NODE 12
#define JOB GRIDOS_GPID(NODE, 7)

/* The most seconds of a scenario, on a machine without hardware virtualisation beside others. */
#ifndef PATIENCE
#define PATIENCE 120
#endif

/* Ends the process unless the condition holds; the parent sees the status. */
#define must(condition)                                                                                      \
	do {                                                                                                 \
		if (!(condition))                                                                            \
			wrong(__FILE__, __LINE__, #condition, errno);                                        \
	} while (0)

/* The operation succeeds, or fails with this error. */
#define gives(error, operation)                                                                              \
	do {                                                                                                 \
		int said = (operation) < 0 ? errno : 0;                                                      \
		if (said != (error))                                                                         \
			wrong(__FILE__, __LINE__, #operation " gives " #error, said);                        \
	} while (0)

static char *complaint; /* shared with the parent */

static inline void wrong(const char *file, int line, const char *what, int error)
{
	const char *name = strrchr(file, '/');

	if (complaint && !*complaint)
		snprintf(complaint, 400, "%s:%d: %s (%s)", name ? name + 1 : file, line, what, strerror(error));
	_exit(1);
}

static inline double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

struct scenario {
	const char *name;
	void (*run)(void);
};

/* Runs each in a process group of its own, of which nothing is left. */
static inline int run(const struct scenario *scenarios, int count)
{
	int failed = 0;

	complaint = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < count; i++) {
		double begun = now();
		int status;
		pid_t pid;

		complaint[0] = 0;
		fflush(stdout);
		pid = fork();
		if (!pid) {
			setpgid(0, 0);
			alarm(PATIENCE);
			scenarios[i].run();
			_exit(0);
		}
		waitpid(pid, &status, 0);
		kill(-pid, SIGKILL);
		if (status) {
			failed++;
			printf("RESULT %s=%s (status %#x)\n", scenarios[i].name, complaint, status);
		} else {
			printf("RESULT %s=ok\nFIGURE %s: %.1f s\n", scenarios[i].name, scenarios[i].name,
			       now() - begun);
		}
	}
	fflush(stdout);
	return failed != 0;
}

/* === Operations: each of them -1 with errno, as ioctl() === */

static inline int device(void)
{
	int fd = open(GRIDOS_DEVICE, O_RDWR | O_CLOEXEC);

	must(fd >= 0);
	return fd;
}

static inline int attach(int fd)
{
	struct gridos_attach args = { .size = sizeof(args), .version = GRIDOS_UAPI_VERSION };

	return ioctl(fd, GRIDOS_IOC(GRIDOS_OP_ATTACH), &args);
}

static inline int range(int fd, uint32_t next, uint32_t end, uint32_t *first)
{
	struct gridos_range args = { .size = sizeof(args), .node = NODE, .next = next, .end = end };
	int got = ioctl(fd, GRIDOS_IOC(GRIDOS_OP_RANGE), &args);

	if (first)
		*first = args.next;
	return got;
}

/* The file of daemon_fd(). */
static int attached = -1;

/* A daemon with all serials that are left. Processes that an earlier scenario killed may still have its daemon open. */
static inline int daemon_fd(void)
{
	int tries = 500, failed;

	attached = device();
	while ((failed = attach(attached)) && errno == EBUSY && tries--)
		usleep(10000);
	must(failed == 0);
	must(range(attached, 1, UINT32_MAX, NULL) == 0);
	return attached;
}

/* In a child: or there is a daemon until it ends. */
static inline void leave_daemon(void)
{
	close(attached);
}

static inline int enter(int fd, int op, pid_t pid, uint64_t *gpid, uint32_t task)
{
	struct gridos_register args = { .size = sizeof(args), .pid = pid, .gpid = *gpid, .job = JOB, .task = task };
	int got = ioctl(fd, GRIDOS_IOC(op), &args);

	*gpid = args.gpid;
	return got;
}

static inline int reg(int fd, pid_t pid, uint64_t *gpid)
{
	*gpid = 0;
	return enter(fd, GRIDOS_OP_REGISTER, pid, gpid, 3);
}

static inline int set_gpid(int fd, pid_t pid, uint64_t gpid)
{
	return enter(fd, GRIDOS_OP_SET_GPID, pid, &gpid, 3);
}

static inline struct gridos_self self(int fd)
{
	struct gridos_self args = { .size = sizeof(args) };

	must(ioctl(fd, GRIDOS_IOC(GRIDOS_OP_SELF), &args) == 0);
	return args;
}

static inline int gpid_of(int fd, pid_t pid, uint64_t *gpid)
{
	struct gridos_lookup args = { .size = sizeof(args), .flags = GRIDOS_LOOKUP_PID, .pid = pid };
	int got = ioctl(fd, GRIDOS_IOC(GRIDOS_OP_LOOKUP), &args);

	*gpid = args.gpid;
	return got;
}

static inline int pid_of(int fd, uint64_t gpid, pid_t *pid)
{
	struct gridos_lookup args = { .size = sizeof(args), .flags = GRIDOS_LOOKUP_GPID, .gpid = gpid };
	int got = ioctl(fd, GRIDOS_IOC(GRIDOS_OP_LOOKUP), &args);

	*pid = args.pid;
	return got;
}

static inline int ask(int fd, uint32_t op, uint32_t flags, uint32_t ms, const void *in, uint32_t in_len, void *out,
		      uint32_t *out_len)
{
	struct gridos_call args = {
		.size = sizeof(args),
		.op = op,
		.flags = flags,
		.timeout_ms = ms,
		.in = (uintptr_t)in,
		.in_len = in_len,
		.out = (uintptr_t)out,
		.out_len = out_len ? *out_len : 0,
	};
	int got = ioctl(fd, GRIDOS_IOC(GRIDOS_OP_CALL), &args);

	if (out_len)
		*out_len = args.out_len;
	return got;
}

/* === /proc/gridos === */

static inline int proc(const char *name, int flags)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), GRIDOS_PROC "/%s", name);
	fd = open(path, flags | O_CLOEXEC);
	must(fd >= 0);
	return fd;
}

/* A whole file of it, read in pieces of this size; until the next call. */
static inline char *proc_text(const char *name, size_t piece)
{
	static char text[1 << 20];
	int fd = proc(name, O_RDONLY);
	size_t len = 0;
	ssize_t got;

	while ((got = read(fd, text + len, piece)) > 0) {
		len += got;
		must(len + piece < sizeof(text));
	}
	must(got == 0);
	close(fd);
	text[len] = 0;
	return text;
}

/* A number in /proc/gridos/version. */
static inline unsigned int told(const char *name)
{
	char *at = strstr(proc_text("version", 4096), name);

	must(at);
	return strtoul(at + strlen(name), NULL, 10);
}

/* === Processes === */

static inline void reap(pid_t pid)
{
	int status;

	must(waitpid(pid, &status, 0) == pid);
	must(status == 0);
}

static inline pid_t spawn(void (*body)(void *), void *data)
{
	pid_t pid = fork();

	must(pid >= 0);
	if (!pid) {
		body(data);
		_exit(0);
	}
	return pid;
}

static inline void become_nobody(void)
{
	must(setgid(NOBODY) == 0);
	must(setuid(NOBODY) == 0);
}

#endif
