/*
 * What the ways between a file and a socket cost, one beside the other. In an emulated machine only how they compare
 * says something, and only where nothing else keeps the machine busy.
 *
 * The work of both ends' TCP is in it: on the loopback device who sends does what the receiver's interrupt would do.
 */
#define _GNU_SOURCE
#include "sockets.h"

#include <sys/sendfile.h>

#define BUFFER (256 << 10)

/* Bytes each way; io_speed MIB for others. */
static uint64_t len = 16 << 20;
static char buffer[BUFFER];

static double cpu(void)
{
	struct rusage usage;

	must(getrusage(RUSAGE_SELF, &usage) == 0);
	return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* === A file to a socket === */

static void by_send(int file, int sock)
{
	int fd = device();

	must(io_send(fd, managed(fd, sock), file, 0, len) == (int64_t)len);
	close(fd);
}

static void by_sendfile(int file, int sock)
{
	off_t at = 0;

	while (at < (off_t)len)
		must(sendfile(sock, file, &at, len - at) > 0);
}

static void spliced(int from, off_t *at, int to, off_t *put)
{
	int pipes[2];
	uint64_t done = 0;

	must(pipe(pipes) == 0);
	fcntl(pipes[1], F_SETPIPE_SZ, BUFFER);
	while (done < len) {
		ssize_t got = splice(from, at, pipes[1], NULL, len - done < BUFFER ? len - done : BUFFER, SPLICE_F_MORE);

		must(got > 0);
		done += got;
		while (got) {
			ssize_t sent = splice(pipes[0], NULL, to, put, got, done < len ? SPLICE_F_MORE : 0);

			must(sent > 0);
			got -= sent;
		}
	}
	close(pipes[0]);
	close(pipes[1]);
}

static void splice_out(int file, int sock)
{
	off_t at = 0;

	spliced(file, &at, sock, NULL);
}

static void by_write(int file, int sock)
{
	uint64_t done = 0;

	while (done < len) {
		ssize_t got = pread(file, buffer, BUFFER, done);

		must(got > 0);
		done += got;
		for (ssize_t at = 0; at < got;) {
			ssize_t sent = write(sock, buffer + at, got - at);

			must(sent > 0);
			at += sent;
		}
	}
}

/* === A socket to a file === */

static void by_recv(int file, int sock)
{
	int fd = device();

	must(io_recv(fd, managed(fd, sock), file, 0, len) == (int64_t)len);
	close(fd);
}

static void splice_in(int file, int sock)
{
	off_t at = 0;

	spliced(sock, NULL, file, &at);
}

static void by_read(int file, int sock)
{
	uint64_t done = 0;

	while (done < len) {
		ssize_t got = recv(sock, buffer, BUFFER, 0);

		must(got > 0);
		must(pwrite(file, buffer, got, done) == got);
		done += got;
	}
}

struct way {
	const char *name;
	void (*move)(int file, int sock);
	int sends;
};

static const struct way ways[] = {
	{ "IO_SEND", by_send, 1 },  { "sendfile", by_sendfile, 1 }, { "splice out", splice_out, 1 }, { "read+write out", by_write, 1 },
	{ "IO_RECV", by_recv, 0 },  { "splice in", splice_in, 0 },  { "read+write in", by_read, 0 },
};

struct end {
	int fd, own, file, sends;
};

/* The other end costs as little as it can: it drops what comes, or sends by sendfile(). */
static void other_end(void *data)
{
	struct end *end = data;
	uint64_t done = 0;

	close(end->own);
	if (!end->sends) {
		by_sendfile(end->file, end->fd);
		return;
	}
	while (done < len) {
		ssize_t got = recv(end->fd, NULL, BUFFER, MSG_TRUNC);

		must(got > 0);
		done += got;
	}
}

static void measure(const struct way *way, int full, int spare)
{
	struct end end = { .file = full, .sends = way->sends };
	double begun, used;
	int ends[2];

	connected(ends);
	end.fd = ends[1];
	end.own = ends[0];
	pid_t pid = spawn(other_end, &end);

	close(ends[1]);
	begun = now();
	used = cpu();
	way->move(way->sends ? full : spare, ends[0]);
	used = cpu() - used;
	begun = now() - begun;
	close(ends[0]);
	reap(pid);
	printf("FIGURE %s: %.0f MB/s, %.2f CPU s/GB\n", way->name, len / begun / 1e6, used / (len / 1e9));
}

static void measured(void)
{
	int full = filled_file(len), spare = filled_file(len);

	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++)
			measure(&ways[i], full, spare);
	}
	must(file_has(spare, 0, 0, len));
}

static const struct scenario scenarios[] = { { "measured", measured } };

int main(int argc, char **argv)
{
	if (argc > 1)
		len = strtoull(argv[1], NULL, 0) << 20;
	loopback_up();
	return run(scenarios, 1);
}
