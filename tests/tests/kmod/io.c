/* Managed sockets: bytes that pass are those that were sent, and nothing that goes wrong hangs, loses or leaks. */
#define _GNU_SOURCE
#include "sockets.h"

#include <pthread.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/time.h>

#define MIB (1 << 20)

static const uint64_t sizes[] = { 0, 1, 100, 4095, 4096, 4097, 65535, 65536, 65537, 300001, 3 * MIB + 7 };
#define SIZES (sizeof(sizes) / sizeof(*sizes))

/* The other end, in a process of its own. */
struct peer {
	int fd, own;
	uint64_t at, len;
	int ends;
};

static void taker(void *data)
{
	struct peer *peer = data;

	close(peer->own);
	takes(peer->fd, peer->at, peer->len, peer->ends);
}

static void giver(void *data)
{
	struct peer *peer = data;

	close(peer->own);
	gives_bytes(peer->fd, peer->at, peer->len);
}

/* === What passes === */

static void send_all(int family)
{
	int fd = device(), file = filled_file(5 * MIB), ends[2];
	uint64_t sum = 0;
	uint32_t number;

	connected_over(family, ends);
	number = managed(fd, ends[0]);
	for (size_t i = 0; i < SIZES; i++) {
		struct peer peer = { ends[1], ends[0], 12345, sizes[i], 0 };
		pid_t pid = spawn(taker, &peer);

		must(io_send(fd, number, file, 12345, sizes[i]) == (int64_t)sizes[i]);
		reap(pid);
		sum += sizes[i];
	}
	must(lseek(file, 0, SEEK_CUR) == 0);
	must(getopt_of(fd, number).sent == sum);
	/* The end of the file; then behind it. */
	must(io_send(fd, number, file, 5 * MIB - 10, 4096) == 10);
	takes(ends[1], 5 * MIB - 10, 10, 0);
	must(io_send(fd, number, file, 6 * MIB, 4096) == 0);
	/* From its position, which goes on. */
	must(lseek(file, 777, SEEK_SET) == 777);
	must(io_send(fd, number, file, -1, 1000) == 1000);
	must(io_send(fd, number, file, -1, 1) == 1);
	must(lseek(file, 0, SEEK_CUR) == 1778);
	takes(ends[1], 777, 1001, 0);
	/* What the program sends besides is in its place. */
	must(io_write(fd, number, 0, LONG_MS, "between", 7) == 7);
	must(io_send(fd, number, file, 0, 5) == 5);
	must(io_close(fd, number) == 0);
	must(recv(ends[1], piece, 7, MSG_WAITALL) == 7 && !memcmp(piece, "between", 7));
	close(ends[0]);
	takes(ends[1], 0, 5, 1);
}

static void sends(void)
{
	send_all(AF_INET);
	send_all(AF_INET6);
}

static void receives(void)
{
	int fd = device(), ends[2];
	uint32_t number;
	uint64_t sum = 0;

	connected(ends);
	number = managed(fd, ends[0]);
	for (size_t i = 0; i < SIZES; i++) {
		struct peer peer = { ends[1], ends[0], 99, sizes[i], 0 };
		pid_t pid = spawn(giver, &peer);
		int file = empty_file();

		/* A hole before it. */
		must(io_recv(fd, number, file, 54321, sizes[i]) == (int64_t)sizes[i]);
		reap(pid);
		must(size_of(file) == (sizes[i] ? 54321 + sizes[i] : 0));
		must(file_has(file, 54321, 99, sizes[i]));
		must(lseek(file, 0, SEEK_CUR) == 0);
		close(file);
		sum += sizes[i];
	}
	must(getopt_of(fd, number).received == sum);
	/* At its position, over what is there. */
	int file = filled_file(5000);

	must(lseek(file, 1000, SEEK_SET) == 1000);
	gives_bytes(ends[1], 70000, 20);
	must(io_recv(fd, number, file, -1, 15) == 15);
	must(io_recv(fd, number, file, -1, 5) == 5);
	must(lseek(file, 0, SEEK_CUR) == 1020);
	must(file_has(file, 0, 0, 1000) && file_has(file, 1000, 70000, 20) && file_has(file, 1020, 1020, 3980));
	/* What is there, and no more. */
	gives_bytes(ends[1], 5, 30);
	must(io(fd, GRIDOS_OP_IO_RECV, number, GRIDOS_IO_SOME, LONG_MS, file, 0, 5000) == 30);
	must(file_has(file, 0, 5, 30));
	/* Many small packets, and the end of them. */
	must(setsockopt(ends[1], IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int)) == 0);
	for (int i = 0; i < 500; i++)
		gives_bytes(ends[1], 7 * i, 7);
	must(shutdown(ends[1], SHUT_WR) == 0);
	must(io_recv(fd, number, file, 10, 100000) == 3500);
	must(file_has(file, 10, 0, 3500));
	must(io_recv(fd, number, file, 10, 100000) == 0);
}

/* From a file to a file, through a connection, in the kernel alone; sparse, and of odd size. */
struct copying {
	int fd, own, file;
	uint64_t len;
};

static void copier(void *data)
{
	struct copying *copying = data;
	int fd = device();

	close(copying->own);
	must(io_send(fd, managed(fd, copying->fd), copying->file, 0, copying->len) == (int64_t)copying->len);
}

static void copies(void)
{
	int fd = device(), from = filled_file(24 * MIB + 4321), to = empty_file(), ends[2];
	const uint64_t len = 40 * MIB + 99;
	struct copying copying;
	uint8_t zeros[4096] = { 0 };

	/* A hole of 16 MiB. */
	must(ftruncate(from, len) == 0);
	connected(ends);
	copying = (struct copying){ ends[0], ends[1], from, len };
	pid_t pid = spawn(copier, &copying);

	close(ends[0]);
	must(io_recv(fd, managed(fd, ends[1]), to, 0, UINT64_MAX) == (int64_t)len);
	reap(pid);
	must(size_of(to) == len && file_has(to, 0, 0, 24 * MIB + 4321));
	for (uint64_t at = 24 * MIB + 4321; at < len; at += sizeof(zeros)) {
		ssize_t got = pread(to, piece, sizeof(zeros), at);

		must(got > 0 && !memcmp(piece, zeros, got));
	}
}

/* What is sent are the file's own pages: who changes them before the peer takes them changes what it gets. */
static void shares_pages(void)
{
	int fd = device(), file = filled_file(65536), ends[2];
	uint32_t number;
	static uint8_t whole[65536];

	connected(ends);
	number = managed(fd, ends[0]);
	must(io_send(fd, number, file, 0, sizeof(whole)) == sizeof(whole));
	must(pwrite(file, "changed", 7, 30000) == 7);
	must(recv(ends[1], whole, sizeof(whole), MSG_WAITALL) == sizeof(whole));
	must(!memcmp(whole + 30000, "changed", 7) && is_filled(whole, 0, 30000));
	/* What the program writes is copied. */
	fill(whole, 0, sizeof(whole));
	must(io_write(fd, number, 0, LONG_MS, whole, sizeof(whole)) == sizeof(whole));
	memset(whole, 0, sizeof(whole));
	takes(ends[1], 0, sizeof(whole), 0);
}

/* === What ends early === */

static void reset(int fd)
{
	struct linger linger = { .l_onoff = 1 };

	must(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) == 0);
	close(fd);
}

static void resetter(void *data)
{
	struct peer *peer = data;

	close(peer->own);
	poll(NULL, 0, 300);
	reset(peer->fd);
}

static void peer_ends(void)
{
	int fd = device(), file = filled_file(MIB), big = filled_file(32 * MIB), ends[2];
	struct gridos_io_wait result;
	static char other[5000];
	uint32_t number;
	int64_t sent;
	char byte;

	connected(ends);
	number = managed(fd, ends[0]);
	gives_bytes(ends[1], 0, 1000);
	close(ends[1]);
	must(io_recv(fd, number, file, 0, 5000) == 1000);
	must(io_recv(fd, number, file, 0, 5000) == 0);
	must(post(fd, number, 0, -1, 0, &byte, 1) > 0);
	must(io_wait(fd, number, 0, LONG_MS, &result, 0) == 0 && !result.error && !result.done);
	/* It takes nothing any more: no signal. */
	must(io_send(fd, number, file, 0, 10) == 10);
	poll(NULL, 0, 50);
	must(io_send(fd, number, file, 0, 10) < 0 && (errno == EPIPE || errno == ECONNRESET));
	must(io_write(fd, number, 0, LONG_MS, "x", 1) < 0 && errno == EPIPE);
	must(io_close(fd, number) == 0);
	close(ends[0]);

	/* An end that is none is told, after what had come. */
	for (int to_file = 0; to_file < 2; to_file++) {
		connected(ends);
		number = managed(fd, ends[0]);
		must(post(fd, number, 0, to_file ? file : -1, 0, to_file ? NULL : other, 5000) > 0);
		gives_bytes(ends[1], 0, 1000);
		poll(NULL, 0, 100);
		reset(ends[1]);
		must(io_wait(fd, number, 0, LONG_MS, &result, 0) == 0 && result.error == -ECONNRESET && result.done == 1000);
		must(io_close(fd, number) == 0);
		close(ends[0]);
	}
	/* Also while it is sent to: a count, and no signal. */
	connected(ends);
	number = managed(fd, ends[0]);
	struct peer peer = { .fd = ends[1], .own = ends[0] };
	pid_t pid = spawn(resetter, &peer);

	close(ends[1]);
	sent = io_send(fd, number, big, 0, 32 * MIB);
	must(sent > 0 && sent < 32 * MIB);
	must(io_send(fd, number, big, 0, 32 * MIB) < 0 && (errno == EPIPE || errno == ECONNRESET));
	reap(pid);
	must(io_close(fd, number) == 0);
	close(ends[0]);
	connected(ends);
	number = managed(fd, ends[0]);
	reset(ends[1]);
	poll(NULL, 0, 50);
	gives(ECONNRESET, io_recv(fd, number, file, 0, 10));
}

static void silent(void)
{
	int fd = device(), file = filled_file(16 * MIB), ends[2];
	struct gridos_io_wait result;
	double begun = now();
	uint32_t number;
	int64_t sent, more;

	connected(ends);
	number = managed(fd, ends[0]);
	gives(ETIMEDOUT, io(fd, GRIDOS_OP_IO_RECV, number, 0, 200, file, 0, 10));
	must(now() - begun > 0.19 && now() - begun < 30);
	gives(EAGAIN, io(fd, GRIDOS_OP_IO_RECV, number, GRIDOS_IO_NOWAIT, 0, file, 0, 10));
	must(post(fd, number, 0, -1, 0, piece, 10) > 0);
	gives(ETIMEDOUT, io_wait(fd, number, 0, 100, &result, 0));
	gives(EAGAIN, io_wait(fd, number, GRIDOS_IO_NOWAIT, 0, &result, 0));
	must(io_wait(fd, number, GRIDOS_IO_CANCEL, 0, &result, 0) == 0);
	must(result.error == -ECANCELED && result.done == 0);
	/* It takes what there is room for, and then nothing. */
	sent = io(fd, GRIDOS_OP_IO_SEND, number, 0, 200, file, 0, 16 * MIB);
	must(sent > 0 && sent < 16 * MIB);
	/* What has arrived may be packed more tightly meanwhile, and a little more be taken. */
	while ((more = io(fd, GRIDOS_OP_IO_SEND, number, 0, 200, file, sent, 16 * MIB)) > 0)
		sent += more;
	gives(ETIMEDOUT, more);
	gives(EAGAIN, io(fd, GRIDOS_OP_IO_SEND, number, GRIDOS_IO_NOWAIT, 0, file, sent, 16 * MIB));
	gives(EAGAIN, io_write(fd, number, GRIDOS_IO_NOWAIT, 0, "x", 1));
	/* The counts are right: all of it, in order, is there. */
	takes(ends[1], 0, sent, 0);
	more = io(fd, GRIDOS_OP_IO_SEND, number, GRIDOS_IO_NOWAIT, 0, file, sent, 50000);
	must(more > 0);
	takes(ends[1], sent, more, 0);
}

static void on_signal(int signal)
{
}

static void alarm_in(int ms)
{
	struct itimerval timer = { .it_value.tv_sec = ms / 1000, .it_value.tv_usec = ms % 1000 * 1000 };

	must(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

static void signals(void)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	int fd = device(), file = filled_file(16 * MIB), ends[2];
	struct gridos_io_wait result;
	uint32_t number;
	int64_t moved, more;

	connected(ends);
	number = managed(fd, ends[0]);
	sigaction(SIGALRM, &action, NULL);
	alarm_in(100);
	gives(EINTR, io_recv(fd, number, file, 0, 10));
	gives_bytes(ends[1], 0, 10);
	alarm_in(100);
	must(io_recv(fd, number, file, 0, 20) == 10);
	must(post(fd, number, 0, -1, 0, piece, 10) > 0);
	alarm_in(100);
	gives(EINTR, io_wait(fd, number, 0, LONG_MS, &result, 0));
	must(io_wait(fd, number, GRIDOS_IO_CANCEL, 0, &result, 0) == 0);
	alarm_in(300);
	moved = io_send(fd, number, file, 0, 16 * MIB);
	must(moved > 0 && moved < 16 * MIB);
	for (alarm_in(200); (more = io_send(fd, number, file, moved, 16 * MIB)) > 0; alarm_in(200))
		moved += more;
	gives(EINTR, more);
	takes(ends[1], 0, moved, 0);
}

/* Whoever is killed leaves nothing, and the peer sees an end. */
struct killed {
	int ends[2], file, kind;
	int *ready;
};

static void dies(void *data)
{
	struct killed *killed = data;
	int fd = device();
	uint32_t number = managed(fd, killed->ends[0]);

	close(killed->ends[1]);
	for (int i = 0; i < 3 && killed->kind == 2; i++)
		must(post(fd, number, 0, i == 1 ? killed->file : -1, 0, i == 1 ? NULL : piece, 1000) > 0);
	__atomic_store_n(killed->ready, 1, __ATOMIC_SEQ_CST);
	if (killed->kind == 0)
		io_send(fd, number, killed->file, 0, 64 * MIB);
	else if (killed->kind == 1)
		io_recv(fd, number, killed->file, 0, 64 * MIB);
	pause();
}

static int io_lines(void)
{
	int lines = 0;

	for (char *at = proc_text("io", 4096); *at; at++)
		lines += *at == '\n';
	return lines - 1;
}

static void killed(void)
{
	struct killed killed = { .file = filled_file(8 * MIB) };
	double end;

	killed.ready = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (killed.kind = 0; killed.kind < 3; killed.kind++) {
		pid_t pid;
		ssize_t got;

		*killed.ready = 0;
		connected(killed.ends);
		pid = spawn(dies, &killed);
		close(killed.ends[0]);
		while (!__atomic_load_n(killed.ready, __ATOMIC_SEQ_CST))
			poll(NULL, 0, 1);
		if (killed.kind)
			gives_bytes(killed.ends[1], 0, 500);
		poll(NULL, 0, 100);
		must(io_lines() == 1);
		must(kill(pid, SIGKILL) == 0);
		must(waitpid(pid, NULL, 0) == pid);
		while ((got = recv(killed.ends[1], piece, sizeof(piece), 0)) > 0)
			;
		must(got == 0 || errno == ECONNRESET);
		close(killed.ends[1]);
		for (end = now() + 10; io_lines() && now() < end;)
			poll(NULL, 0, 10);
		must(io_lines() == 0);
	}
	must(file_has(killed.file, 500, 500, 8 * MIB - 500));
}

/* === Other threads === */

struct other {
	int fd, of_socket, device;
	uint32_t number;
};

static void *closes_socket(void *data)
{
	struct other *other = data;

	poll(NULL, 0, 100);
	must(close(other->of_socket) == 0);
	return NULL;
}

static void *shuts_down(void *data)
{
	struct other *other = data;

	poll(NULL, 0, 300);
	must(shutdown(other->of_socket, SHUT_WR) == 0);
	return NULL;
}

static void *closes_number(void *data)
{
	struct other *other = data;

	poll(NULL, 0, 100);
	must(io_close(other->device, other->number) == 0);
	return NULL;
}

static void *closes_device(void *data)
{
	struct other *other = data;

	poll(NULL, 0, 100);
	must(close(other->device) == 0);
	return NULL;
}

static void closed(void)
{
	int fd = device(), file = empty_file(), big = filled_file(32 * MIB), ends[2];
	struct gridos_io_wait result;
	struct other other;
	pthread_t thread;
	double begun;

	/* The socket's fd: it is managed all the same. */
	connected(ends);
	other = (struct other){ .of_socket = ends[0], .device = fd, .number = managed(fd, ends[0]) };
	must(pthread_create(&thread, NULL, closes_socket, &other) == 0);
	gives(ETIMEDOUT, io(fd, GRIDOS_OP_IO_RECV, other.number, 0, 500, file, 0, 10));
	must(pthread_join(thread, NULL) == 0);
	gives_bytes(ends[1], 0, 10);
	must(io_recv(fd, other.number, file, 0, 10) == 10);
	must(io_close(fd, other.number) == 0);
	takes(ends[1], 0, 0, 1);
	close(ends[1]);

	/* What the program itself ends is no signal, either. */
	connected(ends);
	other = (struct other){ .of_socket = ends[0], .device = fd, .number = managed(fd, ends[0]) };
	must(pthread_create(&thread, NULL, shuts_down, &other) == 0);
	must(io_send(fd, other.number, big, 0, 32 * MIB) > 0);
	must(pthread_join(thread, NULL) == 0);
	gives(EPIPE, io_send(fd, other.number, big, 0, 10));
	must(io_close(fd, other.number) == 0);
	close(ends[0]);
	close(ends[1]);

	/* Its number: whoever waits is told. */
	connected(ends);
	other.number = managed(fd, ends[0]);
	begun = now();
	must(pthread_create(&thread, NULL, closes_number, &other) == 0);
	gives(ECANCELED, io_recv(fd, other.number, file, 0, 10));
	must(now() - begun < LONG_MS / 2000.0);
	must(pthread_join(thread, NULL) == 0);
	gives(EBADF, io_recv(fd, other.number, file, 0, 10));
	gives(EBADF, io_close(fd, other.number));
	other.number = managed(fd, ends[0]);
	must(post(fd, other.number, 0, -1, 0, piece, 10) > 0);
	must(pthread_create(&thread, NULL, closes_number, &other) == 0);
	must(io_wait(fd, other.number, 0, LONG_MS, &result, 0) == 0 && result.error == -ECANCELED);
	must(pthread_join(thread, NULL) == 0);

	/* The device: the operation ends as it would have, and nothing is left then. */
	other.number = managed(fd, ends[0]);
	must(pthread_create(&thread, NULL, closes_device, &other) == 0);
	gives(ETIMEDOUT, io(fd, GRIDOS_OP_IO_RECV, other.number, 0, 500, file, 0, 10));
	must(pthread_join(thread, NULL) == 0);
	must(io_lines() == 0);
}

static void *receives_long(void *data)
{
	struct other *other = data;

	gives(ETIMEDOUT, io(other->device, GRIDOS_OP_IO_RECV, other->number, 0, 600, other->fd, 0, 10));
	return NULL;
}

/* Nobody is kept from a file, or its position, by a peer that is silent. */
static void exclusive_io(void)
{
	int fd = device(), file = filled_file(100), ends[2];
	struct other other = { .device = fd, .fd = file };
	struct gridos_io_wait result;
	double begun;
	pthread_t thread;
	char byte;

	connected(ends);
	other.number = managed(fd, ends[0]);
	must(pthread_create(&thread, NULL, receives_long, &other) == 0);
	poll(NULL, 0, 150);
	gives(EBUSY, io_recv(fd, other.number, file, 0, 10));
	gives(EBUSY, post(fd, other.number, 0, -1, 0, piece, 10));
	begun = now();
	must(read(file, &byte, 1) == 1);
	must(now() - begun < 0.3);
	must(pthread_join(thread, NULL) == 0);
	must(post(fd, other.number, 0, -1, 0, piece, 10) > 0);
	gives(EBUSY, io_recv(fd, other.number, file, 0, 10));
	must(io_wait(fd, other.number, GRIDOS_IO_CANCEL, 0, &result, 0) == 0);
	gives(EAGAIN, io(fd, GRIDOS_OP_IO_RECV, other.number, GRIDOS_IO_NOWAIT, 0, file, 0, 10));
}

static uint64_t taken_by_hand;

static void *takes_some(void *data)
{
	struct other *other = data;
	static char bytes[3000];
	ssize_t got;

	while ((got = recv(other->of_socket, bytes, sizeof(bytes), 0)) > 0) {
		taken_by_hand += got;
		poll(NULL, 0, 1);
	}
	must(got == 0);
	return NULL;
}

/* Each byte is taken from a socket once, by whomever; who was too late is told. */
static void shared_socket(void)
{
	const uint64_t len = 4 * MIB + 1;
	int fd = device(), file = empty_file(), ends[2];
	struct other other = { .device = fd };
	unsigned int late = 0;
	uint64_t sum = 0;
	pthread_t thread;
	struct peer peer;
	int64_t got;

	connected(ends);
	other.of_socket = ends[0];
	other.number = managed(fd, ends[0]);
	peer = (struct peer){ .fd = ends[1], .own = ends[0], .len = len };
	pid_t pid = spawn(giver, &peer);

	close(ends[1]);
	must(pthread_create(&thread, NULL, takes_some, &other) == 0);
	while ((got = io(fd, GRIDOS_OP_IO_RECV, other.number, GRIDOS_IO_SOME, LONG_MS, file, 0, 20000))) {
		must(got > 0 || errno == EIO);
		late += got < 0;
		sum += got > 0 ? got : 0;
	}
	must(pthread_join(thread, NULL) == 0);
	reap(pid);
	must(sum + taken_by_hand == len);
	printf("FIGURE shared_socket: %llu bytes to the file, %llu by hand, %u times too late\n", (unsigned long long)sum,
	       (unsigned long long)taken_by_hand, late);
}

/* === Reads that are done later === */

static void posted(void)
{
	int fd = device(), file = empty_file(), ends[2], reads[4];
	static uint8_t first[10], last[70001], some[100];
	struct gridos_io_wait result;
	uint32_t number;

	connected(ends);
	number = managed(fd, ends[0]);
	reads[0] = post(fd, number, 0, -1, 0, first, sizeof(first));
	reads[1] = post(fd, number, 0, file, 5, NULL, 200000);
	reads[2] = post(fd, number, 0, -1, 0, last, sizeof(last));
	reads[3] = post(fd, number, GRIDOS_IO_SOME, -1, 0, some, sizeof(some));
	for (int i = 0; i < 4; i++)
		must(reads[i] > 0 && (!i || reads[i] != reads[i - 1]));
	gives(EAGAIN, io_wait(fd, number, GRIDOS_IO_NOWAIT, 0, &result, reads[2]));
	struct peer peer = { ends[1], ends[0], 0, 10 + 200000 + sizeof(last) + 3, 0 };
	pid_t pid = spawn(giver, &peer);

	/* In any order. */
	must(io_wait(fd, number, 0, LONG_MS, &result, reads[2]) == 0 && !result.error && result.done == sizeof(last));
	must(is_filled(last, 200010, sizeof(last)));
	must(io_wait(fd, number, 0, LONG_MS, &result, 0) == 0 && (int)result.read == reads[0] && result.done == 10);
	must(is_filled(first, 0, 10));
	must(io_wait(fd, number, 0, LONG_MS, &result, reads[1]) == 0 && !result.error && result.done == 200000);
	must(size_of(file) == 200005 && file_has(file, 5, 10, 200000));
	must(io_wait(fd, number, 0, LONG_MS, &result, reads[3]) == 0 && result.done >= 1 && result.done <= 3);
	must(is_filled(some, 200010 + sizeof(last), result.done));
	reap(pid);
	gives(ENOENT, io_wait(fd, number, 0, LONG_MS, &result, reads[0]));
	gives(ENOENT, io_wait(fd, number, 0, LONG_MS, &result, 0));
	/* Nothing, at once. */
	must(post(fd, number, 0, -1, 0, NULL, 0) > 0);
	must(io_wait(fd, number, 0, LONG_MS, &result, 0) == 0 && !result.error && !result.done);
}

static void cancelled(void)
{
	int fd = device(), ends[2], reads[GRIDOS_IO_READS_MAX];
	struct gridos_io_wait result;
	uint8_t bytes[100] = { 0 }, rest[100];
	uint32_t number;

	connected(ends);
	number = managed(fd, ends[0]);
	reads[0] = post(fd, number, 0, -1, 0, bytes, 100);
	gives_bytes(ends[1], 0, 30);
	poll(NULL, 0, 200);
	must(io_wait(fd, number, GRIDOS_IO_CANCEL, 0, &result, reads[0]) == 0);
	must(result.error == -ECANCELED && result.done == 30 && is_filled(bytes, 0, 30));
	/* What comes then is for others. */
	gives_bytes(ends[1], 30, 70);
	must(recv(ends[0], rest, 70, MSG_WAITALL) == 70 && is_filled(rest, 30, 70));
	must(bytes[30] == 0);
	/* No more than so many, posted or done. */
	for (int i = 0; i < GRIDOS_IO_READS_MAX; i++)
		must((reads[i] = post(fd, number, 0, -1, 0, bytes + i, 1)) > 0);
	gives(EDQUOT, post(fd, number, 0, -1, 0, bytes, 1));
	gives_bytes(ends[1], 0, 1);
	must(io_wait(fd, number, 0, LONG_MS, &result, reads[0]) == 0 && result.done == 1);
	must((reads[0] = post(fd, number, 0, -1, 0, bytes, 1)) > 0);
	must(io_wait(fd, number, GRIDOS_IO_CANCEL, 0, &result, reads[5]) == 0 && result.error == -ECANCELED);
	gives_bytes(ends[1], 1, 1);
	must(io_wait(fd, number, 0, LONG_MS, &result, 0) == 0 && (int)result.read == reads[1] && bytes[1] == byte_at(1));
	/* With the rest of them the socket is closed. */
	must(io_close(fd, number) == 0);
}

static void gives_for_ever(void *data)
{
	struct peer *peer = data;

	close(peer->own);
	while (send(peer->fd, piece, sizeof(piece), MSG_NOSIGNAL) > 0)
		;
}

/* A read without an end, of a peer that never stops. */
static void given_up(void)
{
	int fd = device(), ends[2], file = empty_file();
	struct gridos_io_wait result;
	struct peer peer;
	uint32_t number;
	double begun;

	connected(ends);
	number = managed(fd, ends[0]);
	peer = (struct peer){ .fd = ends[1], .own = ends[0] };
	pid_t pid = spawn(gives_for_ever, &peer);

	close(ends[1]);
	must(post(fd, number, 0, file, 0, NULL, UINT64_MAX) > 0);
	poll(NULL, 0, 300);
	begun = now();
	must(io_wait(fd, number, GRIDOS_IO_CANCEL, 0, &result, 0) == 0);
	must(result.error == -ECANCELED && result.done > 0 && size_of(file) == result.done);
	must(now() - begun < 5);
	must(io_close(fd, number) == 0);
	close(ends[0]);
	reap(pid);
}

/* === Nothing is lost that the file did not take, and no limit is passed === */

static void bounded(void)
{
	struct rlimit limit = { .rlim_cur = 5000, .rlim_max = RLIM_INFINITY };
	int fd = device(), file = empty_file(), ends[2], small;
	struct gridos_io_wait result;
	uint32_t number;
	int64_t done;

	connected(ends);
	number = managed(fd, ends[0]);
	signal(SIGXFSZ, SIG_IGN);
	must(setrlimit(RLIMIT_FSIZE, &limit) == 0);
	gives_bytes(ends[1], 0, 20000);
	must(io_recv(fd, number, file, 0, 20000) == 5000);
	gives(EFBIG, io_recv(fd, number, file, 5000, 10));
	/* A worker writes it: it is the caller's limit still. */
	must(post(fd, number, 0, file, 4990, NULL, 1000) > 0);
	must(io_wait(fd, number, 0, LONG_MS, &result, 0) == 0 && result.error == -EFBIG && result.done == 10);
	must(size_of(file) == 5000 && file_has(file, 0, 0, 4990) && file_has(file, 4990, 5000, 10));
	limit.rlim_cur = RLIM_INFINITY;
	must(setrlimit(RLIMIT_FSIZE, &limit) == 0);
	must(io_recv(fd, number, file, 0, 90) == 90 && file_has(file, 0, 5010, 90));

	/* A full disk. */
	must(mkdir("/tmp/small", 0755) == 0 || errno == EEXIST);
	must(mount("small", "/tmp/small", "tmpfs", 0, "size=8k") == 0);
	small = open("/tmp/small/file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	must(small >= 0);
	done = io_recv(fd, number, small, 0, 14900);
	must(done == 8192 && file_has(small, 0, 5100, 8192));
	gives(ENOSPC, io_recv(fd, number, small, 8192, 10));
	close(small);
	must(umount("/tmp/small") == 0);
	must(io_recv(fd, number, file, 0, 20000 - 5100 - 8192) == 20000 - 5100 - 8192);
	must(file_has(file, 0, 5100 + 8192, 20000 - 5100 - 8192));
}

/* === Buffers === */

static uint64_t room(int fd, uint32_t number, int file, int peer)
{
	int64_t sum = 0, sent;

	while ((sent = io(fd, GRIDOS_OP_IO_SEND, number, 0, 300, file, sum, 32 * MIB)) > 0)
		sum += sent;
	gives(ETIMEDOUT, sent);
	takes(peer, 0, sum, 0);
	return sum;
}

static void buffers(void)
{
	struct gridos_io_buffers set = { .flags = GRIDOS_IO_BUFFER_OUT | GRIDOS_IO_BUFFER_IN, .out = 100000, .in = 50000 }, got;
	int fd = device(), file = filled_file(32 * MIB), ends[2];
	uint64_t little, much;
	int value;
	socklen_t len = sizeof(value);

	connected(ends);
	set.socket = managed(fd, ends[0]);
	got = getopt_of(fd, set.socket);
	must(got.out && got.in && got.max == 4 * MIB && !got.flags && !got.sent && !got.received);
	must(setopt(fd, &set) == 0);
	must(set.out == 100000 && set.in == 50000 && set.max == 4 * MIB);
	must(getsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &value, &len) == 0 && value == 200000);
	must(getsockopt(ends[0], SOL_SOCKET, SO_RCVBUF, &value, &len) == 0 && value == 100000);
	/* Bounded, by its own bound and by the module's; beyond net.core.wmem_max. */
	set = (struct gridos_io_buffers){ .socket = set.socket, .flags = GRIDOS_IO_BUFFER_OUT, .out = UINT64_MAX };
	must(setopt(fd, &set) == 0 && set.out == 4 * MIB);
	set = (struct gridos_io_buffers){ .socket = set.socket, .flags = GRIDOS_IO_BUFFER_MAX | GRIDOS_IO_BUFFER_OUT,
					  .max = 20000, .out = 30000 };
	must(setopt(fd, &set) == 0 && set.max == 20000 && set.out == 20000);
	set = (struct gridos_io_buffers){ .socket = set.socket, .flags = GRIDOS_IO_BUFFER_MAX, .max = UINT64_MAX };
	must(setopt(fd, &set) == 0 && set.max == 4 * MIB && set.out == 20000);

	/* They hold what they say: a sender gets that much further ahead. */
	little = room(fd, set.socket, file, ends[1]);
	set = (struct gridos_io_buffers){ .socket = set.socket, .flags = GRIDOS_IO_BUFFER_OUT, .out = 2 * MIB };
	must(setopt(fd, &set) == 0);
	much = room(fd, set.socket, file, ends[1]);
	must(much > little + MIB);
	printf("FIGURE buffers: ahead of a silent peer by %llu bytes with 20000, by %llu with 2 MiB\n",
	       (unsigned long long)little, (unsigned long long)much);

	/* What is measured, and sizes from it. */
	got = getopt_of(fd, set.socket);
	must(got.rtt_us && got.rate_out && got.sent == little + much);
	set = (struct gridos_io_buffers){ .socket = set.socket, .flags = GRIDOS_IO_BUFFER_AUTO };
	must(setopt(fd, &set) == 0 && set.flags == GRIDOS_IO_BUFFER_AUTO);
	must(set.out >= 65536 && set.out <= 4 * MIB);
	printf("FIGURE buffers: %llu B/s, %u us at least: product %llu, sized %llu\n", (unsigned long long)set.rate_out,
	       set.min_rtt_us, (unsigned long long)set.product, (unsigned long long)set.out);
	if (set.rate_out > set.rate_in && set.product > 32768 && 2 * set.product < 4 * MIB)
		must(set.out >= set.product && set.out <= 2 * set.product + 1);
	set = (struct gridos_io_buffers){ .socket = set.socket, .flags = GRIDOS_IO_BUFFER_MAX, .max = 10000 };
	must(setopt(fd, &set) == 0 && set.flags == GRIDOS_IO_BUFFER_AUTO);
	set = (struct gridos_io_buffers){ .socket = set.socket, .flags = GRIDOS_IO_BUFFER_AUTO };
	must(setopt(fd, &set) == 0 && set.out == 10000);
	set = (struct gridos_io_buffers){ .socket = set.socket, .flags = GRIDOS_IO_BUFFER_OUT, .out = 9999 };
	must(setopt(fd, &set) == 0 && !set.flags && set.out == 9999);
}

/* === What is refused === */

static void hostile(void)
{
	int fd = device(), file = filled_file(100), ends[2], pipes[2], other = -1;
	struct gridos_io_open open_args;
	struct gridos_io args;
	struct gridos_io_wait wait_args;
	struct gridos_io_buffers set;
	uint32_t number, second;

	connected(ends);
	gives(EBADF, io_open(fd, -1, &number));
	gives(ENOTSOCK, io_open(fd, file, &number));
	other = socket(AF_INET, SOCK_DGRAM, 0);
	gives(EPROTONOSUPPORT, io_open(fd, other, &number));
	close(other);
	other = socket(AF_UNIX, SOCK_STREAM, 0);
	gives(EPROTONOSUPPORT, io_open(fd, other, &number));
	close(other);
	other = socket(AF_INET, SOCK_STREAM, 0);
	gives(ENOTCONN, io_open(fd, other, &number));
	must(listen(other, 1) == 0);
	gives(ENOTCONN, io_open(fd, other, &number));
	close(other);
	open_args = (struct gridos_io_open){ .size = sizeof(open_args), .fd = ends[0], .flags = 1 };
	gives(EINVAL, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_OPEN), &open_args));

	gives(EBADF, io_recv(fd, 1, file, 0, 1));
	number = managed(fd, ends[0]);
	gives(EEXIST, io_open(fd, ends[0], &second));
	other = device();
	gives(EEXIST, io_open(other, ends[0], &second));
	gives(EBADF, io_recv(other, number, file, 0, 1));
	gives(EBADF, io_close(other, number));
	close(other);

	/* Files. */
	gives(EBADF, io_send(fd, number, 999, 0, 1));
	gives(EINVAL, io_send(fd, number, ends[1], 0, 1));
	must(pipe(pipes) == 0);
	gives(EINVAL, io_send(fd, number, pipes[0], 0, 1));
	gives(EINVAL, io_recv(fd, number, pipes[1], 0, 1));
	gives(EINVAL, io_recv(fd, number, fd, 0, 1));
	other = open("/tmp/name", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	gives(EBADF, io_send(fd, number, other, 0, 1));
	close(other);
	other = open("/tmp/name", O_RDONLY | O_CLOEXEC);
	gives(EBADF, io_recv(fd, number, other, 0, 1));
	gives(EBADF, post(fd, number, 0, other, 0, NULL, 1));
	close(other);
	other = open("/tmp/name", O_WRONLY | O_APPEND | O_CLOEXEC);
	gives(EINVAL, io_recv(fd, number, other, -1, 1));
	close(other);
	other = open("/tmp", O_RDONLY | O_CLOEXEC);
	gives(EINVAL, io_send(fd, number, other, 0, 1));
	close(other);
	other = open("/tmp/name", O_PATH | O_CLOEXEC);
	gives(EBADF, io_send(fd, number, other, 0, 1));
	close(other);

	/* Numbers. */
	gives_bytes(ends[1], 0, 10);
	gives(EINVAL, io_send(fd, number, file, -2, 1));
	gives(EINVAL, io_send(fd, number, file, INT64_MIN, 1));
	must(io_send(fd, number, file, INT64_MAX, UINT64_MAX) < 0 && (errno == EINVAL || errno == EOVERFLOW));
	must(io_recv(fd, number, file, INT64_MAX, UINT64_MAX) < 0 && (errno == EFBIG || errno == EINVAL || errno == EOVERFLOW));
	gives(EINVAL, io(fd, GRIDOS_OP_IO_SEND, number, GRIDOS_IO_SOME, 0, file, 0, 1));
	gives(EINVAL, io(fd, GRIDOS_OP_IO_RECV, number, GRIDOS_IO_CANCEL, 0, file, 0, 1));
	gives(EINVAL, post(fd, number, 0, file, -1, NULL, 1));
	gives(EINVAL, post(fd, number, 0, file, 0, piece, 1));
	gives(EINVAL, post(fd, number, 0, -1, 1, piece, 1));
	gives(EMSGSIZE, post(fd, number, 0, -1, 0, piece, GRIDOS_IO_READ_MAX + 1));
	gives(EFAULT, post(fd, number, 0, -1, 0, (void *)64, 1));
	gives(EFAULT, post(fd, number, 0, -1, 0, (void *)-4096, 1));
	gives(EFAULT, io_write(fd, number, 0, 0, (void *)-4096, 1));
	gives(EFAULT, io_write(fd, number, 0, 0, (void *)64, 1));
	gives(EFAULT, io_write(fd, number, 0, 0, piece, UINT64_MAX));
	args = (struct gridos_io){ .size = sizeof(args), .socket = number, .file = file, .length = 1, .done = 1 };
	gives(EINVAL, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_SEND), &args));
	args.size = sizeof(args) - 8;
	gives(EINVAL, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_SEND), &args));
	gives(EFAULT, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_SEND), NULL));
	wait_args = (struct gridos_io_wait){ .size = sizeof(wait_args), .socket = number, .flags = GRIDOS_IO_SOME };
	gives(EINVAL, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_WAIT), &wait_args));
	set = (struct gridos_io_buffers){ .socket = number };
	gives(EINVAL, setopt(fd, &set));
	set.flags = GRIDOS_IO_BUFFER_AUTO | GRIDOS_IO_BUFFER_OUT;
	set.out = 1000;
	gives(EINVAL, setopt(fd, &set));
	set.flags = GRIDOS_IO_BUFFER_OUT;
	set.out = 0;
	gives(EINVAL, setopt(fd, &set));
	set.flags = 1 << 4;
	gives(EINVAL, setopt(fd, &set));
	/* What was there is there. */
	must(io_recv(fd, number, file, 0, 10) == 10 && file_has(file, 0, 0, 10));

	/* An urgent byte is not taken for one of the others. */
	gives_bytes(ends[1], 0, 5);
	must(send(ends[1], "!", 1, MSG_OOB) == 1);
	gives_bytes(ends[1], 5, 5);
	poll(NULL, 0, 100);
	must(io(fd, GRIDOS_OP_IO_RECV, number, 0, 500, file, 0, 10) == 5);
	gives(EBADMSG, io(fd, GRIDOS_OP_IO_RECV, number, 0, 500, file, 5, 5));
	must(recv(ends[0], piece, 1, MSG_OOB) == 1 && piece[0] == '!');
	takes(ends[0], 5, 5, 0);
}

/* === Users === */

static void stranger(void *data)
{
	struct other *other = data;
	struct gridos_io_buffers args = { .size = sizeof(args), .socket = other->number };
	struct rlimit limit = { 8192, 8192 };
	uint32_t numbers[80];
	int fd, ends[80][2], file = empty_file();

	must(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
	become_nobody();
	/* The open file is inherited, the socket is not. */
	gives(EPERM, io_recv(other->device, other->number, file, 0, 1));
	gives(EPERM, io_close(other->device, other->number));
	gives(EPERM, ioctl(other->device, GRIDOS_IOC(GRIDOS_OP_IO_GETOPT), &args));
	fd = device();
	gives(EBADF, io_recv(fd, other->number, file, 0, 1));
	must(!strchr(strchr(proc_text("io", 4096), '\n') + 1, '\n'));
	connected(ends[0]);
	numbers[0] = managed(fd, ends[0][0]);
	must(strstr(proc_text("io", 4096), "\t127.0.0.1:"));
	/* Memory that is not its own to lock. */
	gives(ENOMEM, post(fd, numbers[0], 0, -1, 0, piece, sizeof(piece)));
	must(post(fd, numbers[0], 0, -1, 0, piece, 100) > 0);
	/* As many as it may have. */
	for (int i = 1; i < 64; i++) {
		connected(ends[i]);
		numbers[i] = managed(i % 2 ? fd : other->device, ends[i][0]);
	}
	connected(ends[64]);
	gives(EDQUOT, io_open(fd, ends[64][0], &numbers[64]));
	must(io_close(fd, numbers[1]) == 0);
	must(io_open(fd, ends[64][0], &numbers[64]) == 0);
}

static void owners(void)
{
	int fd = device(), ends[2], lines;
	struct other other = { .device = fd };
	char expected[200], *line;

	must(io_lines() == 0);
	connected(ends);
	other.number = managed(fd, ends[0]);
	must(io_write(fd, other.number, 0, LONG_MS, "12345", 5) == 5);
	snprintf(expected, sizeof(expected), "-\t%d\t127.0.0.1:", getpid());
	line = strchr(proc_text("io", 4096), '\n') + 1;
	must(!strncmp(line, expected, strlen(expected)));
	must(strstr(line, "\t5\t0\t"));
	chmod("/tmp", 01777);
	reap(spawn(stranger, &other));
	/* Those that it opened on the file that is still open are still there. */
	lines = io_lines();
	must(lines > 1);
	close(fd);
	must(io_lines() == 0);
}

static const struct scenario scenarios[] = {
	{ "sends", sends },	{ "receives", receives },   { "copies", copies }, { "shares_pages", shares_pages },
	{ "peer_ends", peer_ends }, { "silent", silent },   { "signals", signals }, { "killed", killed },
	{ "closed", closed },	{ "exclusive_io", exclusive_io }, { "shared_socket", shared_socket }, { "posted", posted }, { "cancelled", cancelled }, { "given_up", given_up },
	{ "bounded", bounded },	{ "buffers", buffers },	    { "hostile", hostile }, { "owners", owners },
};

int main(void)
{
	loopback_up();
	return run(scenarios, sizeof(scenarios) / sizeof(*scenarios));
}
