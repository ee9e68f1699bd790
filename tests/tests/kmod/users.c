/* What a user may not do, and may not see. */
#define _GNU_SOURCE
#include "daemon.h"

static void refused_user(void *data)
{
	struct gridos_publish publish = { .size = sizeof(publish), .table = GRIDOS_OP_NODES, .record_size = sizeof(struct gridos_node) };
	struct gridos_version version = { .size = sizeof(version) };
	int fd = *(int *)data, own;
	uint64_t gpid;
	char bytes[64] = { 0 };

	become_nobody();
	own = device();
	gives(0, ioctl(own, GRIDOS_IOC(GRIDOS_OP_VERSION), &version));
	gives(EPERM, attach(own));
	/* The file that a daemon left to it is of no use, either. */
	gives(EPERM, reg(fd, getpid(), &gpid));
	gives(EPERM, set_gpid(fd, getpid(), GRIDOS_GPID(NODE + 1, 77)));
	gives(EPERM, range(fd, 1, 2, NULL));
	gpid = 0;
	gives(EPERM, enter(fd, GRIDOS_OP_ENTER, 0, &gpid, 5));
	gives(EPERM, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_PUBLISH), &publish));
	gives(EPERM, read(fd, bytes, sizeof(bytes)));
	gives(EPERM, write(fd, bytes, sizeof(bytes)));
	must(self(own).gpid == 0);
}

static void refused(void)
{
	int fd = daemon_fd();

	reap(spawn(refused_user, &fd));
}

/* === Processes === */

struct root {
	pid_t pid;
	uint64_t gpid;
	int pipes[2];
};

static void blind_user(void *data)
{
	const struct root *root = data;
	char expected[100];
	uint64_t gpid;
	pid_t pid;
	int fd;

	leave_daemon();
	become_nobody();
	fd = device();
	gives(ESRCH, gpid_of(fd, root->pid, &gpid));
	must(gpid == 0);
	gives(ESRCH, pid_of(fd, root->gpid, &pid));
	must(pid == 0);
	/* Its own. */
	gpid = self(fd).gpid;
	must(gpid);
	gives(0, pid_of(fd, gpid, &pid));
	must(pid == getpid());
	snprintf(expected, sizeof(expected), "gpid\tpid\tjob\ttask\n12.%u\t%d\tj12.7\t3\n", GRIDOS_GPID_SERIAL(gpid), pid);
	must(!strcmp(proc_text("gpids", 4096), expected));
	must(write(root->pipes[1], "", 1) == 1);
	pause();
}

static void blind(void)
{
	struct root root = { .pid = getpid() };
	int fd = daemon_fd();
	uint64_t gpid;
	pid_t pid, found;
	char done;

	must(pipe(root.pipes) == 0);
	gives(0, reg(fd, getpid(), &root.gpid));
	pid = spawn(blind_user, &root);
	/* Root sees it, before and after it has become another user. */
	close(root.pipes[1]);
	gives(0, gpid_of(fd, pid, &gpid));
	gives(0, pid_of(fd, gpid, &found));
	must(found == pid);
	must(read(root.pipes[0], &done, 1) == 1);
	gives(0, pid_of(fd, gpid, &found));
	must(strstr(strchr(proc_text("gpids", 4096), '\n'), "\tj12.7\t3\n"));
	kill(pid, SIGKILL);
	must(waitpid(pid, NULL, 0) == pid);
}

/* === Jobs === */

static const struct gridos_job jobs[] = {
	{ .job = GRIDOS_GPID(2, 1), .uid = 0, .state = GRIDOS_JOB_RUNNING, .tasks = 3, .running = 2, .done = 1, .name = "of root" },
	{ .job = GRIDOS_GPID(2, 2), .uid = NOBODY, .state = GRIDOS_JOB_DONE, .tasks = 1, .done = 1, .failed = 1, .name = "a b\n" },
	{ .job = GRIDOS_GPID(12, 1), .uid = 1000, .state = GRIDOS_JOB_WAITING, .tasks = 9 },
};

static void jobs_of_a_user(void *data)
{
	struct gridos_job got[3];
	struct gridos_list list = { .size = sizeof(list), .records = (uintptr_t)got, .record_size = sizeof(*got), .count = 3 };

	leave_daemon();
	become_nobody();
	gives(0, ioctl(device(), GRIDOS_IOC(GRIDOS_OP_JOBS), &list));
	must(list.count == 1 && !memcmp(got, &jobs[1], sizeof(*got)));
	must(!strcmp(proc_text("jobs", 4096), "job\tuid\tstate\ttasks\trunning\tdone\tfailed\tname\n"
					      "j2.2\t65534\tdone\t1\t0\t1\t1\ta\\040b\\012\n"));
}

static void others_jobs(void)
{
	struct gridos_publish publish = { .size = sizeof(publish), .table = GRIDOS_OP_JOBS, .records = (uintptr_t)jobs,
					  .record_size = sizeof(*jobs), .count = 3 };
	struct gridos_job got[3];
	struct gridos_list list = { .size = sizeof(list), .records = (uintptr_t)got, .record_size = sizeof(*got), .count = 3 };
	int fd = daemon_fd();

	gives(0, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_PUBLISH), &publish));
	gives(0, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_JOBS), &list));
	must(list.count == 3 && !memcmp(got, jobs, sizeof(jobs)));
	must(!strcmp(proc_text("jobs", 4096), "job\tuid\tstate\ttasks\trunning\tdone\tfailed\tname\n"
					      "j2.1\t0\trunning\t3\t2\t1\t0\tof\\040root\n"
					      "j2.2\t65534\tdone\t1\t0\t1\t1\ta\\040b\\012\n"
					      "j12.1\t1000\twaiting\t9\t0\t0\t0\t-\n"));
	reap(spawn(jobs_of_a_user, NULL));
}

/* === Limits: a user cannot take all calls, nor keep them by giving up === */

#define LIMIT 64

static void asks(void *data)
{
	leave_daemon();
	become_nobody();
	gives(0, ask(device(), 300, 0, 60000, NULL, 0, NULL, NULL));
}

static void over_limit(void *data)
{
	leave_daemon();
	become_nobody();
	gives(EDQUOT, ask(device(), 300, 0, 60000, NULL, 0, NULL, NULL));
}

static void gives_up(void *data)
{
	leave_daemon();
	become_nobody();
	gives(ETIMEDOUT, ask(device(), 300, 0, 1, NULL, 0, NULL, NULL));
}

static void limits(void)
{
	int fd = daemon_fd();
	pid_t pids[LIMIT];
	uint64_t ids[LIMIT];

	for (int i = 0; i < LIMIT; i++) {
		pids[i] = spawn(asks, NULL);
		ids[i] = next_request(fd)->head.id;
	}
	reap(spawn(over_limit, NULL));
	/* Others are not kept from asking. */
	pid_t root = calls(300, 0, 60000, "", 0, "");

	must(answer(fd, next_request(fd)->head.id, 0, "", 0) > 0);
	reap(root);
	for (int i = 0; i < LIMIT; i++) {
		must(answer(fd, ids[i], 0, "", 0) > 0);
		reap(pids[i]);
	}

	/* Those who have given up count until the daemon knows. */
	for (int i = 0; i < LIMIT; i++) {
		pids[i] = spawn(asks, NULL);
		ids[i] = next_request(fd)->head.id;
	}
	for (int i = 0; i < LIMIT; i++) {
		kill(pids[i], SIGKILL);
		must(waitpid(pids[i], NULL, 0) == pids[i]);
	}
	reap(spawn(over_limit, NULL));
	for (int i = 0; i < LIMIT; i++) {
		struct incoming *request = next_request(fd);

		must(request->head.op == GRIDOS_OP_CANCEL);
	}
	must(!readable(fd));
	reap(spawn(gives_up, NULL));
}

static const struct scenario scenarios[] = {
	{ "refused", refused }, { "blind", blind }, { "others_jobs", others_jobs }, { "limits", limits },
};

int main(void)
{
	return run(scenarios, sizeof(scenarios) / sizeof(*scenarios));
}
