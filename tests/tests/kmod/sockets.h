/* Connected sockets, managed sockets, and files whose bytes tell where they are. */
#ifndef SOCKETS_H
#define SOCKETS_H

#include "grid.h"

#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

/* As libgrid::sys::abi has it, which nobody else can compare. */
_Static_assert(sizeof(struct gridos_io) == 56, "struct gridos_io");
_Static_assert(offsetof(struct gridos_io, offset) == 24, "offset");
_Static_assert(offsetof(struct gridos_io, done) == 48, "done");

/* Longer than anything takes that goes well. */
#define LONG_MS 60000

static inline void loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		perror("lo");
	close(fd);
}

/* Two ends of a connection. */
static inline void connected_over(int family, int ends[2])
{
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	struct sockaddr *address = family == AF_INET ? (void *)&v4 : (void *)&v6;
	socklen_t len = family == AF_INET ? sizeof(v4) : sizeof(v6);
	int listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	must(listener >= 0);
	must(bind(listener, address, len) == 0);
	must(listen(listener, 1) == 0);
	must(getsockname(listener, address, &len) == 0);
	ends[0] = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	must(connect(ends[0], address, len) == 0);
	ends[1] = accept(listener, NULL, NULL);
	must(ends[1] >= 0);
	close(listener);
}

static inline void connected(int ends[2])
{
	connected_over(AF_INET, ends);
}

/* === Operations === */

static inline int io_open(int fd, int of_socket, uint32_t *number)
{
	struct gridos_io_open args = { .size = sizeof(args), .fd = of_socket };
	int got = ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_OPEN), &args);

	*number = args.socket;
	return got;
}

static inline int io_close(int fd, uint32_t number)
{
	struct gridos_io_open args = { .size = sizeof(args), .socket = number };

	return ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_CLOSE), &args);
}

/* It must be possible. */
static inline uint32_t managed(int fd, int of_socket)
{
	uint32_t number;

	must(io_open(fd, of_socket, &number) == 0);
	return number;
}

/* Bytes moved, or -1. */
static inline int64_t io(int fd, int op, uint32_t number, uint32_t flags, uint32_t ms, int file, int64_t offset,
			 uint64_t length)
{
	struct gridos_io args = { .size = sizeof(args), .socket = number, .flags = flags, .timeout_ms = ms,
				  .file = file, .offset = offset, .length = length };

	return ioctl(fd, GRIDOS_IOC(op), &args) < 0 ? -1 : (int64_t)args.done;
}

static inline int64_t io_send(int fd, uint32_t number, int file, int64_t offset, uint64_t length)
{
	return io(fd, GRIDOS_OP_IO_SEND, number, 0, LONG_MS, file, offset, length);
}

static inline int64_t io_recv(int fd, uint32_t number, int file, int64_t offset, uint64_t length)
{
	return io(fd, GRIDOS_OP_IO_RECV, number, 0, LONG_MS, file, offset, length);
}

static inline int64_t io_write(int fd, uint32_t number, uint32_t flags, uint32_t ms, const void *bytes, uint64_t length)
{
	struct gridos_io args = { .size = sizeof(args), .socket = number, .flags = flags, .timeout_ms = ms,
				  .file = -1, .bytes = (uintptr_t)bytes, .length = length };

	return ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_WRITE), &args) < 0 ? -1 : (int64_t)args.done;
}

/* Its number, or -1. */
static inline int post(int fd, uint32_t number, uint32_t flags, int file, int64_t offset, void *bytes, uint64_t length)
{
	struct gridos_io args = { .size = sizeof(args), .socket = number, .flags = flags, .file = file,
				  .offset = offset, .bytes = (uintptr_t)bytes, .length = length };

	return ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_READ), &args) < 0 ? -1 : (int)args.read;
}

static inline int io_wait(int fd, uint32_t number, uint32_t flags, uint32_t ms, struct gridos_io_wait *result, uint32_t read)
{
	*result = (struct gridos_io_wait){ .size = sizeof(*result), .socket = number, .read = read, .flags = flags,
					   .timeout_ms = ms };
	return ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_WAIT), result);
}

static inline int setopt(int fd, struct gridos_io_buffers *args)
{
	args->size = sizeof(*args);
	return ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_SETOPT), args);
}

static inline struct gridos_io_buffers getopt_of(int fd, uint32_t number)
{
	struct gridos_io_buffers args = { .size = sizeof(args), .socket = number };

	must(ioctl(fd, GRIDOS_IOC(GRIDOS_OP_IO_GETOPT), &args) == 0);
	return args;
}

/* === Bytes that tell where they are === */

static inline uint8_t byte_at(uint64_t at)
{
	at = (at + 1) * 0x9e3779b97f4a7c15;
	return at >> 56;
}

static inline void fill(uint8_t *bytes, uint64_t at, size_t len)
{
	for (size_t i = 0; i < len; i++)
		bytes[i] = byte_at(at + i);
}

static inline int is_filled(const uint8_t *bytes, uint64_t at, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (bytes[i] != byte_at(at + i))
			return 0;
	}
	return 1;
}

/* A file without a name. */
static inline int empty_file(void)
{
	int fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	must(fd >= 0);
	return fd;
}

static uint8_t piece[1 << 18];

static inline int filled_file(uint64_t len)
{
	int fd = empty_file();

	for (uint64_t at = 0; at < len;) {
		size_t part = len - at < sizeof(piece) ? len - at : sizeof(piece);

		fill(piece, at, part);
		must(pwrite(fd, piece, part, at) == (ssize_t)part);
		at += part;
	}
	return fd;
}

/* The file has these bytes from there on: those that begin at the place at. */
static inline int file_has(int fd, uint64_t offset, uint64_t at, uint64_t len)
{
	while (len) {
		size_t part = len < sizeof(piece) ? len : sizeof(piece);

		if (pread(fd, piece, part, offset) != (ssize_t)part || !is_filled(piece, at, part))
			return 0;
		offset += part;
		at += part;
		len -= part;
	}
	return 1;
}

static inline uint64_t size_of(int fd)
{
	struct stat stat;

	must(fstat(fd, &stat) == 0);
	return stat.st_size;
}

/* Takes these bytes, which begin at the place at; then, if it is the end, no more. */
static inline void takes(int fd, uint64_t at, uint64_t len, int ends)
{
	while (len) {
		ssize_t got = recv(fd, piece, len < sizeof(piece) ? len : sizeof(piece), 0);

		must(got > 0);
		must(is_filled(piece, at, got));
		at += got;
		len -= got;
	}
	if (ends)
		must(recv(fd, piece, 1, 0) == 0);
}

static inline void gives_bytes(int fd, uint64_t at, uint64_t len)
{
	while (len) {
		size_t part = len < sizeof(piece) ? len : sizeof(piece);
		ssize_t sent;

		fill(piece, at, part);
		sent = send(fd, piece, part, MSG_NOSIGNAL);
		must(sent > 0);
		at += sent;
		len -= sent;
	}
}

#endif
