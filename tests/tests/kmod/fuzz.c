/*
 * Random and hostile arguments for every operation, for the files of /proc/gridos, and for what the daemon reads and
 * writes. The seed is told, and may be given: fuzz SEED. Nothing has to come of it but that the module goes on.
 *
 * Arguments end where memory does, so that one byte too many that is read or written is EFAULT.
 */
#define _GNU_SOURCE
#include "daemon.h"
#include "sockets.h"

#include <sys/time.h>
#include <sys/uio.h>

#define TURNS 16000
#define PAGE 4096

static uint64_t state;
static char *page; /* one that is there, and behind it one that is not */
static unsigned int *succeeded; /* by operation, of all processes, or failed for their state alone */

static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static uint64_t below(uint64_t n)
{
	return rnd() % n;
}

static uint64_t number(void)
{
	static const uint64_t edges[] = { 0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 64, 100, 256, 4095, 4096, 4097, 65535, 65536, 65537, 0x7fffffff,
					  0x80000000, 0xffffffff, 0x100000000, INT64_MAX, 1ull << 63, UINT64_MAX - 1, UINT64_MAX };

	switch (below(4)) {
	case 0:
		return rnd();
	case 1:
		return below(20);
	case 2:
		return GRIDOS_GPID(NODE + below(2), below(3000));
	default:
		return edges[below(sizeof(edges) / sizeof(*edges))];
	}
}

/* A pointer: good, at the end of what is there, nowhere, or the kernel's. */
static uint64_t pointer(void)
{
	switch (below(6)) {
	case 0:
		return 0;
	case 1:
		return (uintptr_t)page + PAGE - below(200);
	case 2:
		return (uintptr_t)page + PAGE + below(PAGE);
	case 3:
		return 0xffffffff81000000 + below(1 << 20);
	case 4:
		return number();
	default:
		return (uintptr_t)page;
	}
}

/* A child that waits, until it is replaced. */
static pid_t waiting;

static pid_t some_pid(void)
{
	switch (below(7)) {
	case 0:
		return getpid();
	case 1:
		return -(pid_t)below(10);
	case 2:
		return below(200);
	case 3:
		return number();
	case 4:
		return getppid();
	default:
		return waiting;
	}
}

/* A connection, one end of which is managed most of the time; a file; and the number of that end. */
static int pair[2], io_file;
static uint32_t io_number;

static int some_file(void)
{
	return below(4) ? io_file : (int)below(20) - 3;
}

/* Something arrives, and there is room again. */
static void peer_acts(void)
{
	if (below(2))
		send(pair[1], page, below(PAGE), MSG_DONTWAIT | MSG_NOSIGNAL);
	while (recv(pair[1], piece, sizeof(piece), MSG_DONTWAIT) > 0)
		;
}

/* Mostly what the operation takes; then some of it is spoiled. */
union any {
	uint32_t size;
	struct gridos_version version;
	struct gridos_self self;
	struct gridos_lookup lookup;
	struct gridos_list list;
	struct gridos_call call;
	struct gridos_io_open io_open;
	struct gridos_io io;
	struct gridos_io_wait io_wait;
	struct gridos_io_buffers io_buffers;
	struct gridos_attach attach;
	struct gridos_register reg;
	struct gridos_range range;
	struct gridos_publish publish;
	uint32_t words[32];
};

static void records(void)
{
	struct gridos_node *nodes = (void *)page;
	struct gridos_job *jobs = (void *)page;
	int of_nodes = below(2);

	for (int i = 0; i < 8; i++) {
		if (of_nodes)
			nodes[i] = (struct gridos_node){ .number = i + 1 + below(2), .state = below(5), .memory = rnd() };
		else
			jobs[i] = (struct gridos_job){ .job = GRIDOS_GPID(1, i + 1 + below(2)), .uid = number(), .state = below(4) };
	}
	page[below(PAGE)] = rnd();
}

static uint32_t build(uint32_t op, union any *args)
{
	memset(args, 0, sizeof(*args));
	switch (op) {
	case GRIDOS_OP_LOOKUP:
		args->lookup = (struct gridos_lookup){ sizeof(args->lookup), below(4), number(), some_pid(), 0 };
		return sizeof(args->lookup);
	case GRIDOS_OP_NODES:
	case GRIDOS_OP_JOBS:
		args->list = (struct gridos_list){ sizeof(args->list), below(2) ? number() : 96 + 8 * below(4), pointer(),
						   number(), number(), 0 };
		return sizeof(args->list);
	case GRIDOS_OP_CALL:
		args->call = (struct gridos_call){ sizeof(args->call), 256 + below(10), below(3), 1 + below(3), pointer(),
						   pointer(), below(2) ? number() : below(200), below(2) ? number() : below(200) };
		return sizeof(args->call);
	case GRIDOS_OP_IO_OPEN:
		args->io_open = (struct gridos_io_open){ sizeof(args->io_open), below(3) ? pair[0] : some_file(), 0, 0 };
		return sizeof(args->io_open);
	case GRIDOS_OP_IO_CLOSE:
		args->io_open = (struct gridos_io_open){ sizeof(args->io_open), 0, 0, below(3) ? io_number : number() };
		return sizeof(args->io_open);
	case GRIDOS_OP_IO_SEND:
	case GRIDOS_OP_IO_RECV:
		args->io = (struct gridos_io){ .size = sizeof(args->io), .socket = io_number, .flags = below(4), .timeout_ms = 1 + below(3),
					       .file = some_file(), .offset = below(3) ? (int64_t)below(9999) - 1 : (int64_t)number(),
					       .length = below(3) ? below(99999) : number() };
		return sizeof(args->io);
	case GRIDOS_OP_IO_WRITE:
		args->io = (struct gridos_io){ .size = sizeof(args->io), .socket = io_number, .flags = below(2), .timeout_ms = 1 + below(3),
					       .file = -1, .bytes = pointer(), .length = below(3) ? below(PAGE) : number() };
		return sizeof(args->io);
	case GRIDOS_OP_IO_READ:
		args->io = (struct gridos_io){ .size = sizeof(args->io), .socket = io_number, .flags = 2 * below(2), .file = -1,
					       .bytes = pointer(), .length = below(3) ? below(PAGE) : number() };
		if (below(2)) {
			args->io.file = some_file();
			args->io.offset = below(3) ? below(9999) : number();
			args->io.bytes = 0;
		}
		return sizeof(args->io);
	case GRIDOS_OP_IO_WAIT:
		args->io_wait = (struct gridos_io_wait){ .size = sizeof(args->io_wait), .socket = io_number,
							 .read = below(2) ? 0 : number(), .flags = below(2) | 4 * below(2),
							 .timeout_ms = 1 + below(3) };
		return sizeof(args->io_wait);
	case GRIDOS_OP_IO_SETOPT:
	case GRIDOS_OP_IO_GETOPT:
		args->io_buffers = (struct gridos_io_buffers){ .size = sizeof(args->io_buffers), .socket = io_number };
		if (op == GRIDOS_OP_IO_SETOPT) {
			args->io_buffers.flags = below(2) ? 8 : 1 + below(15);
			args->io_buffers.out = number();
			args->io_buffers.in = number();
			args->io_buffers.max = number();
		}
		return sizeof(args->io_buffers);
	case GRIDOS_OP_ATTACH:
		args->attach = (struct gridos_attach){ sizeof(args->attach), below(3) };
		return sizeof(args->attach);
	case GRIDOS_OP_REGISTER:
	case GRIDOS_OP_SET_GPID:
		args->reg = (struct gridos_register){ sizeof(args->reg), some_pid(), number(), number(), number(), 0 };
		return sizeof(args->reg);
	case GRIDOS_OP_ENTER:
		args->reg = (struct gridos_register){ sizeof(args->reg), below(4) ? 0 : some_pid(), below(4) ? 0 : number(),
						      number(), number(), 0 };
		return sizeof(args->reg);
	case GRIDOS_OP_RANGE:
		/* Not to the end of all serials at once. */
		args->range = (struct gridos_range){ sizeof(args->range), below(3) ? NODE : number(), below(100000),
						     below(10000000) };
		return sizeof(args->range);
	case GRIDOS_OP_PUBLISH:
		records();
		args->publish = (struct gridos_publish){ sizeof(args->publish), below(3) ? 4 + below(2) : number(), pointer(),
							 below(2) ? number() : 96, below(2) ? number() : below(9) };
		return sizeof(args->publish);
	default:
		args->version.size = sizeof(args->version);
		return op == GRIDOS_OP_SELF ? sizeof(args->self) : sizeof(args->version);
	}
}

static const uint8_t ops[] = { 1, 2, 3, 4, 5, 6, 16, 17, 18, 19, 20, 21, 22, 23, 24, 128, 129, 130, 131, 132, 133 };

static void operation(int fd)
{
	uint32_t op = below(20) ? ops[below(sizeof(ops))] : below(256);
	unsigned long cmd = below(50) ? GRIDOS_IOC(op) : (unsigned long)rnd();
	uint32_t size, given;
	union any args;
	char *at;

	size = build(op, &args);
	args.size = size;
	if (!below(4)) {
		args.size = number();
		size = args.size <= sizeof(args) ? args.size : size;
	}
	if (!below(3))
		args.words[1 + below(31)] = number();
	/* A range may be made of a spoiled one: it is bounded, or later ones would be empty. */
	if (op == GRIDOS_OP_RANGE && args.range.next > 1000000)
		args.range.next = 1;
	given = size < sizeof(args) ? size : sizeof(args);
	at = page + PAGE - given;
	memcpy(at, &args, given);
	if (!below(20))
		at = (char *)pointer();
	errno = 0;
	if (ioctl(fd, cmd, at) < 0)
		must(errno != ENOSYS && errno < 512);
	/* Refused for the process alone, which has got a GPID before. */
	if (errno == 0 && op == GRIDOS_OP_IO_OPEN && at >= page && at < page + PAGE)
		io_number = ((struct gridos_io_open *)at)->socket;
	if (errno == EEXIST || errno == 0)
		__atomic_fetch_add(&succeeded[_IOC_NR(cmd)], 1, __ATOMIC_RELAXED);
}

static void files(int fd)
{
	static const char *const names[] = { "version", "self", "nodes", "jobs", "gpids", "io", "control", "pipes" };
	struct iovec parts[3] = { { page, below(100) }, { page + PAGE - 10, below(30) }, { (void *)pointer(), below(PAGE) } };
	struct gridos_answer answer = { below(8) ? sizeof(answer) : number(), -(int)below(600), below(20), below(50), 0 };
	char path[64];
	int file;

	snprintf(path, sizeof(path), GRIDOS_PROC "/%s", names[below(8)]);
	file = open(path, (below(3) ? O_RDONLY : O_RDWR) | O_NONBLOCK | O_CLOEXEC);
	if (file >= 0) {
		for (int i = below(6); i > 0; i--) {
			switch (below(6)) {
			case 0:
				lseek(file, number(), below(3));
				break;
			case 1:
				if (pread(file, (void *)pointer(), below(2 * PAGE), number()) < 0)
					must(errno < 512);
				break;
			case 2:
				if (write(file, page + PAGE - below(300), below(300)) < 0)
					must(errno < 512);
				break;
			case 3:
				if (readv(file, parts, 3) < 0)
					must(errno < 512);
				break;
			default:
				if (read(file, page, below(PAGE)) < 0)
					must(errno < 512);
			}
		}
		close(file);
	}
	/* What a daemon reads and writes. */
	for (int i = below(4); i > 0; i--) {
		if (below(2)) {
			if (read(fd, (void *)(below(4) ? (uintptr_t)page : pointer()), below(2 * PAGE)) < 0)
				must(errno < 512);
		} else {
			size_t len = below(4) ? sizeof(answer) + answer.len : below(200);

			memcpy(page, &answer, sizeof(answer));
			if (write(fd, below(8) ? page : (void *)pointer(), len) < 0)
				must(errno < 512);
		}
	}
}

/* Asks and gives up all the time, so that the daemon of the others has something to read. */
static void asks(void *data)
{
	int fd = device();

	for (;;)
		ask(fd, 300, below(2), 1 + below(5), page, below(100), NULL, NULL);
}

static void on_signal(int signal)
{
}

/* Interrupts what would take long: a call may have any timeout. */
static void interrupt(void)
{
	struct itimerval timer = { .it_value.tv_usec = 20000, .it_interval.tv_usec = 20000 };
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	sigaction(SIGALRM, &action, NULL);
	must(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

/* The device; mostly that of the daemon, if there is none and the process may be it. */
static int opened(void)
{
	int fd = open(GRIDOS_DEVICE, O_RDWR | O_NONBLOCK | O_CLOEXEC);

	must(fd >= 0);
	if (below(4) && attach(fd) == 0)
		range(fd, 1, 10000000, NULL);
	io_open(fd, pair[0], &io_number);
	attached = fd;
	return fd;
}

static void waits(void *data)
{
	leave_daemon();
	for (;;)
		pause();
}

static void turns(void *data)
{
	pid_t asker = 0;
	int fd;

	state += (uintptr_t)data * 0x9e3779b97f4a7c15;
	if ((uintptr_t)data == 2)
		become_nobody();
	else
		asker = spawn(asks, NULL);
	waiting = spawn(waits, NULL);
	connected(pair);
	io_file = filled_file(100000);
	interrupt();
	fd = opened();
	for (int i = 0; i < TURNS; i++) {
		if (below(5))
			operation(fd);
		else
			files(fd);
		if (!below(10))
			peer_acts();
		/* The connection may have been spoiled for good. */
		if (!below(1000)) {
			close(pair[0]);
			close(pair[1]);
			connected(pair);
		}
		/* Another file: the daemon goes, with all that it was asked. */
		if (!below(300)) {
			close(fd);
			fd = opened();
		}
		if (!below(40)) {
			kill(waiting, SIGKILL);
			must(waitpid(waiting, NULL, 0) == waiting);
			waiting = spawn(waits, NULL);
		}
	}
	/* It may not have left the daemon yet. */
	kill(waiting, SIGKILL);
	must(waitpid(waiting, NULL, 0) == waiting);
	if (asker)
		kill(asker, SIGKILL);
}

static void fuzzed(void)
{
	struct gridos_version version = { .size = sizeof(version) };
	pid_t pids[3];
	int fd;

	page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(mprotect(page + PAGE, PAGE, PROT_NONE) == 0);
	succeeded = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (uintptr_t i = 0; i < 3; i++)
		pids[i] = spawn(turns, (void *)i);
	for (int i = 0; i < 3; i++)
		reap(pids[i]);

	printf("FIGURE fuzz: %d turns; successes by operation:", 3 * TURNS);
	for (size_t i = 0; i < sizeof(ops); i++)
		printf(" %d: %u%s", ops[i], succeeded[ops[i]], i + 1 < sizeof(ops) ? "," : "\n");
	fflush(stdout);
	/* No operation was only ever refused, except calls, which nobody answers knowingly; and none that there is not. */
	for (uint32_t op = 0; op < 256; op++)
		must(op == GRIDOS_OP_CALL || !succeeded[op] == !memchr(ops, op, sizeof(ops)));
	/* It does what it did before. */
	fd = device();
	gives(0, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_VERSION), &version));
	must(version.version == GRIDOS_UAPI_VERSION && !(version.flags & GRIDOS_VERSION_DAEMON));
	gives(0, attach(fd));
	gives(0, range(fd, 1, UINT32_MAX, NULL));
	reap(calls(300, 0, 10, "", ETIMEDOUT, ""));
}

static const struct scenario scenarios[] = { { "fuzzed", fuzzed } };

int main(int argc, char **argv)
{
	loopback_up();
	state = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL) << 20 ^ getpid();
	state |= 1;
	printf("FIGURE seed of fuzz: %#llx\n", (unsigned long long)state);
	return run(scenarios, 1);
}
