/* GPIDs: who gets one, who keeps it, who finds it, and that nothing of the dead is left. */
#define _GNU_SOURCE
#include "grid.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>

/* Before all others: they give a range. */
static void unranged(void)
{
	int fd = device();
	uint64_t gpid;

	must(attach(fd) == 0);
	gives(ENXIO, reg(fd, getpid(), &gpid));
	gives(ENXIO, set_gpid(fd, getpid(), GRIDOS_GPID(NODE + 1, 5)));
	gpid = 0;
	gives(ENXIO, enter(fd, GRIDOS_OP_ENTER, 0, &gpid, 5));
	must(self(fd).node == 0);
}

static void identity(void)
{
	int fd = daemon_fd();
	uint64_t gpid, found;
	char expected[200];
	pid_t pid;

	must(self(fd).gpid == 0 && self(fd).job == 0 && self(fd).node == NODE);
	must(!strcmp(proc_text("self", 4096), "gpid -\nnode 12\njob -\ntask -\n"));
	gives(ESRCH, gpid_of(fd, getpid(), &found));

	gives(0, reg(fd, getpid(), &gpid));
	must(GRIDOS_GPID_NODE(gpid) == NODE && GRIDOS_GPID_SERIAL(gpid) > 0);
	gives(EEXIST, reg(fd, getpid(), &found));
	must(self(fd).gpid == gpid && self(fd).job == JOB && self(fd).task == 3);
	gives(0, gpid_of(fd, getpid(), &found));
	must(found == gpid);
	gives(0, pid_of(fd, gpid, &pid));
	must(pid == getpid());
	snprintf(expected, sizeof(expected), "gpid 12.%u\nnode 12\njob j12.7\ntask 3\n", GRIDOS_GPID_SERIAL(gpid));
	must(!strcmp(proc_text("self", 4096), expected));
	snprintf(expected, sizeof(expected), "gpid\tpid\tjob\ttask\n12.%u\t%d\tj12.7\t3\n", GRIDOS_GPID_SERIAL(gpid),
		 getpid());
	must(!strcmp(proc_text("gpids", 4096), expected));

	gives(ESRCH, reg(fd, 0, &found));
	gives(ESRCH, reg(fd, -1, &found));
	gives(ESRCH, reg(fd, 4000000, &found));
	gives(EINVAL, reg(fd, 2, &found)); /* a thread of the kernel */
	gives(ESRCH, gpid_of(fd, -1, &found));
	gives(ESRCH, pid_of(fd, gpid + 1000, &pid));
	gives(ESRCH, pid_of(fd, 0, &pid));
}

/* Whoever starts a process of a job registers it from within, on a file of its own. */
static void entered(void)
{
	int daemon = daemon_fd(), own = device();
	uint64_t gpid = 0, found;
	pid_t child;

	gives(EINVAL, enter(own, GRIDOS_OP_ENTER, getpid(), &gpid, 5));
	gpid = 77;
	gives(EINVAL, enter(own, GRIDOS_OP_ENTER, 0, &gpid, 5));
	gpid = 0;
	gives(0, enter(own, GRIDOS_OP_ENTER, 0, &gpid, 5));
	must(self(own).gpid == gpid && self(own).job == JOB && self(own).task == 5);
	gives(0, gpid_of(daemon, getpid(), &found));
	must(found == gpid);
	found = 0;
	gives(EEXIST, enter(own, GRIDOS_OP_ENTER, 0, &found, 6));
	child = fork();
	if (!child) {
		must(self(own).task == 5 && self(own).gpid != gpid);
		_exit(0);
	}
	reap(child);
}

/* === Inheritance === */

static int fd;
static uint64_t *gpids;

static void *in_a_thread(void *data)
{
	uint64_t gpid;

	must(self(fd).gpid);
	/* By the number of a thread, too. */
	gives(0, gpid_of(fd, syscall(SYS_gettid), &gpid));
	must(gpid == self(fd).gpid);
	return NULL;
}

/* The program that exec() starts: it has this GPID still. */
static int is(const char *gpid)
{
	return self(device()).gpid == strtoull(gpid, NULL, 10) ? 0 : 1;
}

static void *execs(void *gpid)
{
	execl("/proc/self/exe", "processes", "is", gpid, NULL);
	wrong(__FILE__, __LINE__, "execl", errno);
	return NULL;
}

static void executes(int by_a_thread)
{
	char gpid[32];
	pthread_t thread;

	snprintf(gpid, sizeof(gpid), "%llu", (unsigned long long)self(fd).gpid);
	if (!by_a_thread)
		execs(gpid);
	/* A thread that is not the first becomes it. */
	pthread_create(&thread, NULL, execs, gpid);
	pthread_join(thread, NULL);
	_exit(1);
}

static void grandchild(void *data)
{
	gpids[2] = self(fd).gpid;
	must(self(fd).job == JOB && self(fd).task == 3);
}

static void child(void *data)
{
	pthread_t thread;

	gpids[1] = self(fd).gpid;
	must(self(fd).job == JOB && self(fd).task == 3);
	reap(spawn(grandchild, NULL));
	pthread_create(&thread, NULL, in_a_thread, NULL);
	pthread_join(thread, NULL);
	must(self(fd).gpid == gpids[1]);
	for (int by_a_thread = 0; by_a_thread < 2; by_a_thread++) {
		pid_t pid = fork();

		if (!pid)
			executes(by_a_thread);
		reap(pid);
	}
	for (int i = 0; i < 3; i++) {
		pid_t pid = vfork();

		if (!pid)
			_exit(0);
		reap(pid);
	}
}

static void inherits(void)
{
	unsigned int before = told("processes ");
	uint64_t gpid;
	pid_t pid;

	gpids = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	fd = daemon_fd();
	gives(0, reg(fd, getpid(), &gpids[0]));
	pid = spawn(child, NULL);
	reap(pid);
	must(gpids[0] && gpids[1] && gpids[2]);
	must(gpids[0] != gpids[1] && gpids[1] != gpids[2] && gpids[0] != gpids[2]);
	gives(ESRCH, gpid_of(fd, pid, &gpid));
	gives(ESRCH, pid_of(fd, gpids[1], &pid));
	must(self(fd).gpid == gpids[0]);
	must(told("processes ") == before + 1);
	must(told("lost ") == 0);
}

/* A process that is dead but not waited for is in no job any more. */
static void zombies(void)
{
	int fd = daemon_fd();
	uint64_t gpid;
	siginfo_t info;
	pid_t pid;

	gives(0, reg(fd, getpid(), &gpid));
	pid = fork();
	if (!pid)
		_exit(0);
	must(waitid(P_PID, pid, &info, WEXITED | WNOWAIT) == 0);
	gives(ESRCH, gpid_of(fd, pid, &gpid));
	gives(ESRCH, reg(fd, pid, &gpid));
	reap(pid);
}

/* === A storm: many short processes from several parents === */

#define PARENTS 4
#define CHILDREN 2500

static uint64_t *storm_gpids;

static void storm_parent(void *data)
{
	int fd = device();
	long parent = (long)data;

	for (int i = 0; i < CHILDREN; i++) {
		pid_t pid = fork();

		if (!pid) {
			storm_gpids[parent * CHILDREN + i] = self(fd).gpid;
			_exit(0);
		}
		reap(pid);
	}
}

static int ascending(const void *left, const void *right)
{
	uint64_t a = *(uint64_t *)left, b = *(uint64_t *)right;

	return a < b ? -1 : a > b;
}

static void storm(void)
{
	size_t size = PARENTS * CHILDREN * sizeof(uint64_t);
	unsigned int before = told("processes ");
	pid_t parents[PARENTS];
	int fd = daemon_fd();
	uint64_t gpid;

	storm_gpids = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	gives(0, reg(fd, getpid(), &gpid));
	for (long i = 0; i < PARENTS; i++)
		parents[i] = spawn(storm_parent, (void *)i);
	for (int i = 0; i < PARENTS; i++)
		reap(parents[i]);
	qsort(storm_gpids, PARENTS * CHILDREN, sizeof(uint64_t), ascending);
	must(storm_gpids[0] != 0);
	for (int i = 1; i < PARENTS * CHILDREN; i++)
		must(storm_gpids[i - 1] != storm_gpids[i]);
	must(told("processes ") == before + 1);
	must(told("lost ") == 0);
	/* The one line that is left, below that of the columns, is ours. */
	must(strchr(strchr(proc_text("gpids", 4096), '\n') + 1, '\n')[1] == 0);
}

/* Processes that end while they are registered: whichever is first, nothing is left. */
static void dying(void)
{
	unsigned int before = told("processes "), registered = 0;
	int fd = daemon_fd();
	uint64_t gpid;

	for (int i = 0; i < 600; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		for (int turn = i % 40; turn > 0; turn--)
			sched_yield();
		if (reg(fd, pid, &gpid) == 0)
			registered++;
		else
			must(errno == ESRCH);
		reap(pid);
	}
	must(registered > 0);
	must(told("processes ") == before);
}

/* === Restored processes === */

static void restored(void)
{
	uint64_t old = GRIDOS_GPID(NODE + 1, 5031), own, gpid;
	unsigned int before = told("processes ");
	int fd = daemon_fd();
	pid_t pid, found;
	int pipes[2];

	must(pipe(pipes) == 0);
	pid = fork();
	if (!pid) {
		char go;

		/* The GPID has changed when this has come; a child gets one of this node's. */
		must(read(pipes[0], &go, 1) == 1);
		must(self(fd).gpid == old);
		pid = fork();
		if (!pid) {
			must(GRIDOS_GPID_NODE(self(fd).gpid) == NODE);
			must(self(fd).job == JOB);
			_exit(0);
		}
		reap(pid);
		_exit(0);
	}
	gives(0, reg(fd, pid, &own));
	gives(0, set_gpid(fd, pid, old));
	gives(EEXIST, set_gpid(fd, pid, old));
	gives(EEXIST, set_gpid(fd, getpid(), old));
	gives(0, gpid_of(fd, pid, &gpid));
	must(gpid == old);
	gives(0, pid_of(fd, old, &found));
	must(found == pid);
	gives(ESRCH, pid_of(fd, own, &found));
	must(told("processes ") == before + 1);
	must(write(pipes[1], "", 1) == 1);
	reap(pid);
	must(told("processes ") == before);

	/* One that this node has handed out; none that it will. */
	gives(0, set_gpid(fd, getpid(), own));
	gives(EINVAL, set_gpid(fd, getpid(), own + 1000000));
	gives(EINVAL, set_gpid(fd, getpid(), UINT32_MAX));
	gives(EINVAL, set_gpid(fd, getpid(), GRIDOS_GPID(NODE + 1, 0)));
	gives(EINVAL, set_gpid(fd, getpid(), GRIDOS_GPID(0x80000000u, 1)));
	must(self(fd).gpid == own);
}

/* === Serials === */

static void has_one(void *fd)
{
	uint64_t gpid;

	gives(EEXIST, reg(*(int *)fd, getpid(), &gpid));
}

static void ranges(void)
{
	struct gridos_range bad = { .size = sizeof(bad), .node = 0, .next = 1, .end = 10 };
	int fd = device(), lost = told("lost ");
	struct gridos_request request;
	uint64_t first;
	uint32_t next, after;

	must(attach(fd) == 0);
	gives(EINVAL, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_RANGE), &bad));
	gives(0, range(fd, 1, UINT32_MAX, &next));
	/* Four serials: one for this, three for children, and a fourth child has none. */
	gives(0, range(fd, 1, next + 4, &after));
	must(after == next);
	must(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
	gives(EAGAIN, read(fd, &request, sizeof(request)));
	gives(0, reg(fd, getpid(), &first));
	must(GRIDOS_GPID_SERIAL(first) == next);
	for (unsigned int i = 1; i <= 4; i++) {
		pid_t pid = fork();

		if (!pid) {
			must(self(fd).gpid == (i < 4 ? GRIDOS_GPID(NODE, next + i) : 0));
			_exit(0);
		}
		reap(pid);
	}
	must((int)told("lost ") == lost + 1);
	must(read(fd, &request, sizeof(request)) == sizeof(request));
	must(request.op == GRIDOS_OP_LOW);
	gives(EAGAIN, read(fd, &request, sizeof(request)));
	gives(ERANGE, range(fd, 1, next + 4, NULL));
	gives(0, range(fd, 1, next + 5, &after));
	must(after == next + 4);
	reap(spawn(has_one, &fd));
	gives(0, range(fd, next + 100, UINT32_MAX, &after));
	must(after == next + 100);
}

/* === Namespaces: inside, processes have the numbers that they have there, and those outside have none === */

static void inside(int fd, uint64_t outer)
{
	uint64_t gpid;
	char expected[100];
	pid_t pid;

	must(getpid() == 1);
	gives(0, gpid_of(fd, 1, &gpid));
	must(gpid == self(fd).gpid && gpid != outer);
	gives(0, pid_of(fd, gpid, &pid));
	must(pid == 1);
	gives(ESRCH, pid_of(fd, outer, &pid));
	snprintf(expected, sizeof(expected), "gpid\tpid\tjob\ttask\n12.%u\t1\tj12.7\t3\n", GRIDOS_GPID_SERIAL(gpid));
	must(!strcmp(proc_text("gpids", 4096), expected));
}

static void namespaces(void)
{
	int fd = daemon_fd();
	uint64_t outer, gpid;
	pid_t pid, found;
	int pipes[2];
	char done;

	must(pipe(pipes) == 0);
	gives(0, reg(fd, getpid(), &outer));
	must(unshare(CLONE_NEWPID) == 0);
	pid = fork();
	if (!pid) {
		inside(fd, outer);
		must(write(pipes[1], "", 1) == 1);
		pause();
	}
	close(pipes[1]);
	must(read(pipes[0], &done, 1) == 1);
	gives(0, gpid_of(fd, pid, &gpid));
	gives(0, pid_of(fd, gpid, &found));
	must(found == pid);
	kill(pid, SIGKILL);
	must(waitpid(pid, NULL, 0) == pid);
}

/* === /proc/gridos/gpids while processes come and go === */

#define STAYING 200

static void waits(void *data)
{
	pause();
}

static void ends(void *data)
{
}

static void come_and_go(void *data)
{
	for (;;)
		reap(spawn(ends, NULL));
}

static void listed(void)
{
	pid_t staying[STAYING], restless[2];
	int fd = daemon_fd();
	uint64_t gpid;

	gives(0, reg(fd, getpid(), &gpid));
	for (int i = 0; i < STAYING; i++)
		staying[i] = spawn(waits, NULL);
	for (int i = 0; i < 2; i++)
		restless[i] = spawn(come_and_go, NULL);
	for (int turn = 0; turn < 15; turn++) {
		const char *text = proc_text("gpids", 61 + turn);
		char *line;
		int at = 0;

		for (line = strtok(strchr(text, '\n'), "\n"); line; line = strtok(NULL, "\n")) {
			unsigned int node, serial, job_node, job, task;
			int pid;

			must(sscanf(line, "%u.%u\t%d\tj%u.%u\t%u", &node, &serial, &pid, &job_node, &job, &task) == 6);
			must(node == NODE && job_node == NODE && job == 7 && task == 3);
			if (at < STAYING && pid == staying[at])
				at++;
			else
				for (int i = 0; i < STAYING; i++)
					must(pid != staying[i]);
		}
		must(at == STAYING);
	}
	for (int i = 0; i < STAYING; i++)
		kill(staying[i], SIGKILL);
	for (int i = 0; i < 2; i++)
		kill(restless[i], SIGKILL);
}

static const struct scenario scenarios[] = {
	{ "unranged", unranged }, { "identity", identity },   { "entered", entered },
	{ "inherits", inherits }, { "zombies", zombies },
	{ "storm", storm },	  { "dying", dying },	      { "restored", restored }, { "ranges", ranges },
	{ "namespaces", namespaces }, { "listed", listed },
};

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "is"))
		return is(argv[2]);
	return run(scenarios, sizeof(scenarios) / sizeof(*scenarios));
}
