/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files that deal with managed sockets know of each other.
 *
 * A managed socket is held by the open file of the device where it was opened, until it is
 * closed there, and by whoever is doing something with it. None of what follows is called with
 * a spinlock held, unless it says so.
 */
#ifndef GRIDOS_IO_H
#define GRIDOS_IO_H

#include <linux/bvec.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/net.h>
#include <linux/poll.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/uio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <net/sock.h>

#include "gridos.h"

/* What one step moves at most: between steps signals are looked at, and locks let go. */
#define GRIDOS_IO_STEP		(1024 * 1024)

#define GRIDOS_BATCH_PACKETS	32
#define GRIDOS_BATCH_PARTS	128

/*
 * Received bytes that are still in the socket, and packets that keep them in memory. They are on
 * pages, or all in the heads of packets, whose memory a file system must not take for pages.
 */
struct gridos_batch {
	struct sk_buff *packets[GRIDOS_BATCH_PACKETS];
	union {
		struct bio_vec pages[GRIDOS_BATCH_PARTS];
		struct kvec heads[GRIDOS_BATCH_PARTS];
	};
	bool on_pages;
	unsigned int packet_count;
	unsigned int part_count;
	size_t len;
	/* TCP's number of the first byte. */
	u32 seq;
};

struct gridos_socket {
	refcount_t held;
	/* In the list of all, which ascends. */
	struct list_head all;
	u64 order;

	struct file *file;
	struct socket *sock;
	struct pid *pid;
	kuid_t uid;
	u64 gpid;
	/* Set once, before who waits is woken. */
	bool closed;

	atomic64_t sent;
	atomic64_t received;

	/* Bits: an operation sends, or receives. */
	unsigned long busy;
	/* Bytes are being taken from the socket; guards the batch, and where posted reads write. */
	struct mutex receiving;
	struct gridos_batch batch;

	/* io_read.c: reads in their order, posted and done; under the lock. */
	spinlock_t lock;
	struct list_head posted;
	struct list_head done;
	unsigned int reads;
	u32 last_read;
	bool armed;
	struct wait_queue_entry arrival;
	wait_queue_head_t waiters;
	struct work_struct work;

	/* io_buffers.c */
	bool automatic;
	u32 max;
	unsigned long adapted;
	u64 window_begin;
	u64 window_bytes;
	u64 rate_in;
};

enum { GRIDOS_SENDS, GRIDOS_RECEIVES };

/* === io.c === */

/* That of the number, held; or an error. */
struct gridos_socket *gridos_socket_get(struct file *file, u32 number);
void gridos_socket_hold(struct gridos_socket *socket);
/* From anywhere. */
void gridos_socket_put(struct gridos_socket *socket);

/* === io_move.c === */

/* The file that a program named, held, if it may be read (or written). */
struct file *gridos_file_get(int fd, fmode_t mode);
/* === io_receive.c === */

/*
 * Moves what has arrived. With the socket's receiving mutex. 0 if nothing will come any more,
 * EAGAIN if nothing is there. Nothing is written to the file at limit or behind.
 */
ssize_t gridos_step_to_file(struct gridos_socket *socket, struct file *file, loff_t *pos,
			    size_t len, u64 limit);
ssize_t gridos_step_to_iter(struct gridos_socket *socket, struct iov_iter *to);

/* === io_read.c === */

int gridos_reads_init(void);
void gridos_reads_exit(void);
void gridos_reads_setup(struct gridos_socket *socket);
/* The socket is closed. If may_wait, nothing is written any more when it comes back. */
void gridos_reads_stop(struct gridos_socket *socket, bool may_wait);
void gridos_reads_free(struct gridos_socket *socket);
/* Whether a RECV may begin; it keeps reads from being posted. */
bool gridos_receive_begin(struct gridos_socket *socket);
void gridos_receive_end(struct gridos_socket *socket);

/* === io_buffers.c === */

/* What is known of a connection. Takes no lock: it is about now. */
struct gridos_measured {
	u32 rtt_us;
	u32 min_rtt_us;
	u64 rate_out;
	u64 rate_in;
	u64 product;
};

void gridos_measure(const struct gridos_socket *socket, struct gridos_measured *measured);
void gridos_buffers_setup(struct gridos_socket *socket);
/* Bytes have been taken; with the receiving mutex. */
void gridos_count_received(struct gridos_socket *socket, size_t len);
/* Follows what is measured, if the program wants that, now and then. */
void gridos_buffers_adapt(struct gridos_socket *socket);

#endif /* GRIDOS_IO_H */
