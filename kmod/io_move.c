// SPDX-License-Identifier: GPL-2.0
/*
 * Bytes between managed sockets, files and memory.
 *
 * Everything is done in steps. A step waits for no peer, and holds its locks (of the file's
 * position, of the file, of the socket) as long as it lasts; between steps the peer is waited
 * for, with none of them. So nobody is kept from a file by a peer that is silent.
 *
 *	SEND	the page cache's own pages become part of packets: nothing is copied. What is
 *		between is the pipe in which a process keeps what it splices.
 *	RECV	one copy, from the packets to the page cache (io_receive.c).
 *	WRITE	one copy, from the program's memory to packets, as send() does.
 */
#include <linux/fsnotify.h>
#include <linux/module.h>
#include <linux/pipe_fs_i.h>
#include <linux/sched/signal.h>
#include <linux/splice.h>
#include <linux/uaccess.h>

#include "io.h"

/* So many steps in a row come to nothing, though there was something to do: it is no race. */
#define VAIN_STEPS 8

/* === A file to a socket === */

struct sending {
	struct socket *sock;
	/* Bytes that are wanted and that the file has, as far as is known. */
	u64 left;
};

/* Flags of a message with len bytes. Nothing waits, and no signal is raised. */
static int message_flags(const struct sending *sending, size_t len)
{
	return MSG_DONTWAIT | MSG_NOSIGNAL | (len < sending->left ? MSG_MORE : 0);
}

static void count_sent(struct sending *sending, int sent)
{
	if (sent > 0)
		sending->left -= min_t(u64, sent, sending->left);
}

/*
 * What is in the pipe goes to the socket, whose packets share its pages. Kernels that have this
 * flag have a function for it, which takes one page; later ones have a flag of sendmsg().
 */
#ifdef MSG_SENDPAGE_NOTLAST

static int send_buffer(struct pipe_inode_info *pipe, struct pipe_buffer *buf,
		       struct splice_desc *sd)
{
	struct sending *sending = sd->u.data;
	int sent;

	if (!sendpage_ok(buf->page))
		return -EINVAL;
	sent = kernel_sendpage(sending->sock, buf->page, buf->offset, sd->len,
			       message_flags(sending, sd->len));
	count_sent(sending, sent);
	return sent;
}

static int send_pipe(struct pipe_inode_info *pipe, struct splice_desc *sd)
{
	return __splice_from_pipe(pipe, sd, send_buffer);
}

#else

static int send_pipe(struct pipe_inode_info *pipe, struct splice_desc *sd)
{
	struct bio_vec parts[PIPE_DEF_BUFFERS];
	struct sending *sending = sd->u.data;
	unsigned int mask = pipe->ring_size - 1, at, count = 0;
	struct msghdr msg = {};
	size_t len = 0;
	int sent;

	for (at = pipe->tail; at != pipe->head && count < ARRAY_SIZE(parts); at++) {
		struct pipe_buffer *buf = &pipe->bufs[at & mask];
		size_t part = min_t(size_t, buf->len, sd->total_len - len);
		int err = pipe_buf_confirm(pipe, buf);

		if (!err && !sendpage_ok(buf->page))
			err = -EINVAL;
		if (err && !len)
			return err;
		if (err || !part)
			break;
		parts[count++] = (struct bio_vec){
			.bv_page = buf->page, .bv_offset = buf->offset, .bv_len = part,
		};
		len += part;
	}
	msg.msg_flags = message_flags(sending, len) | MSG_SPLICE_PAGES;
	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, parts, count, len);
	sent = sock_sendmsg(sending->sock, &msg);
	count_sent(sending, sent);
	/* Of a pipe that was not sent as a whole, the caller lets go. */
	if (sent == sd->total_len) {
		while (pipe->tail != pipe->head)
			pipe_buf_release(pipe, &pipe->bufs[pipe->tail++ & mask]);
	}
	return sent;
}

#endif

static ssize_t send_from(struct gridos_socket *socket, struct file *file, loff_t *pos, u64 len)
{
	loff_t end = i_size_read(file_inode(file));
	struct sending sending = {
		.sock = socket->sock,
		.left = end > *pos ? min_t(u64, len, end - *pos) : 0,
	};
	struct splice_desc sd = {
		.total_len = min_t(u64, len, GRIDOS_IO_STEP),
		.pos = *pos,
		.u.data = &sending,
	};
	ssize_t sent = rw_verify_area(READ, file, pos, sd.total_len);

	if (sent < 0)
		return sent;
	sent = splice_direct_to_actor(file, &sd, send_pipe);
	if (sent > 0) {
		*pos += sent;
		fsnotify_access(file);
	}
	return sent;
}

/* === Transfers: steps, and waiting between them === */

struct transfer {
	struct gridos_socket *socket;
	struct file *file;
	/* Where in the file, unless it is the file's own position. */
	loff_t at;
	bool at_position;
	/* Of memory. */
	u64 bytes;
	__poll_t ready;
	ssize_t (*step)(struct transfer *transfer, u64 len);
};

/* Where the file is read or written; its own position is locked, as for read() and write(). */
static loff_t *begin_position(struct transfer *transfer)
{
	if (!transfer->at_position)
		return &transfer->at;
	if (transfer->file->f_mode & FMODE_ATOMIC_POS &&
	    mutex_lock_interruptible(&transfer->file->f_pos_lock))
		return NULL;
	transfer->at = transfer->file->f_pos;
	return &transfer->at;
}

static void end_position(struct transfer *transfer)
{
	if (!transfer->at_position)
		return;
	transfer->file->f_pos = transfer->at;
	if (transfer->file->f_mode & FMODE_ATOMIC_POS)
		mutex_unlock(&transfer->file->f_pos_lock);
}

static ssize_t step_send(struct transfer *transfer, u64 len)
{
	loff_t *pos = begin_position(transfer);
	ssize_t sent;

	if (!pos)
		return -EINTR;
	sent = send_from(transfer->socket, transfer->file, pos, len);
	end_position(transfer);
	return sent;
}

static ssize_t step_recv(struct transfer *transfer, u64 len)
{
	struct gridos_socket *socket = transfer->socket;
	ssize_t done = -EINTR;
	loff_t *pos;

	if (mutex_lock_interruptible(&socket->receiving))
		return -EINTR;
	pos = begin_position(transfer);
	if (pos) {
		/* The file looks at the caller's own limit. */
		done = gridos_step_to_file(socket, transfer->file, pos,
					   min_t(u64, len, GRIDOS_IO_STEP), U64_MAX);
		end_position(transfer);
	}
	mutex_unlock(&socket->receiving);
	return done;
}

static ssize_t step_write(struct transfer *transfer, u64 len)
{
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL };
	size_t step = min_t(u64, len, GRIDOS_IO_STEP);
	ssize_t sent;

	if (step < len)
		msg.msg_flags |= MSG_MORE;
	iov_iter_ubuf(&msg.msg_iter, ITER_SOURCE, u64_to_user_ptr(transfer->bytes), step);
	sent = sock_sendmsg(transfer->socket->sock, &msg);
	if (sent > 0)
		transfer->bytes += sent;
	return sent;
}

static bool is_ready(const struct transfer *transfer)
{
	struct gridos_socket *socket = transfer->socket;

	return READ_ONCE(socket->closed) ||
	       socket->sock->ops->poll(socket->file, socket->sock, NULL) &
	       (transfer->ready | EPOLLERR | EPOLLHUP);
}

/* Waits for the peer, this long at most; tells how long is left. */
static int wait_for_peer(const struct transfer *transfer, unsigned int vain, long *left)
{
	wait_queue_head_t *queue = sk_sleep(transfer->socket->sock->sk);
	long still = wait_event_interruptible_timeout(*queue, is_ready(transfer), *left);

	if (still > 0 && vain >= VAIN_STEPS) {
		schedule_timeout_interruptible(1);
		still--;
	}
	if (signal_pending(current))
		return -EINTR;
	if (still <= 0)
		return -ETIMEDOUT;
	*left = still;
	return 0;
}

static int do_transfer(struct transfer *transfer, struct gridos_io *args)
{
	long patience = gridos_patience(args->timeout_ms), left = patience;
	struct gridos_socket *socket = transfer->socket;
	unsigned int vain = 0;
	u64 done = 0;
	int err = 0;

	while (done < args->length) {
		ssize_t moved = transfer->step(transfer, args->length - done);

		if (moved > 0) {
			done += moved;
			left = patience;
			vain = 0;
			gridos_buffers_adapt(socket);
			cond_resched();
			if (signal_pending(current))
				err = -EINTR;
		} else if (moved != -EAGAIN) {
			err = moved;
			break;
		} else if (args->flags & GRIDOS_IO_NOWAIT ||
			   (done && args->flags & GRIDOS_IO_SOME)) {
			err = -EAGAIN;
		} else {
			err = wait_for_peer(transfer, ++vain, &left);
		}
		if (READ_ONCE(socket->closed))
			err = -ECANCELED;
		if (err)
			break;
	}
	args->done = done;
	if (done)
		return 0;
	/* That of a system call which would begin again. */
	return err == -ERESTARTSYS ? -EINTR : err;
}

/* === Operations === */

struct file *gridos_file_get(int fd, fmode_t mode)
{
	struct file *file = fget(fd);
	int err = 0;

	if (!file)
		return ERR_PTR(-EBADF);
	if (!(file->f_mode & mode))
		err = -EBADF;
	else if (!S_ISREG(file_inode(file)->i_mode) || !(file->f_mode & FMODE_LSEEK))
		err = -EINVAL;
	else if (mode & FMODE_WRITE &&
		 (!file->f_op->write_iter || file->f_flags & (O_APPEND | O_DIRECT)))
		err = -EINVAL;
	if (!err)
		return file;
	fput(file);
	return ERR_PTR(err);
}

/* The security module is asked, as by sendmsg(); what follows may not ask it. */
static int may_send(struct gridos_socket *socket)
{
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL };
	int err = rw_verify_area(WRITE, socket->file, NULL, 0);

	if (err < 0)
		return err;
	iov_iter_kvec(&msg.msg_iter, ITER_SOURCE, NULL, 0, 0);
	err = sock_sendmsg(socket->sock, &msg);
	return err == -EAGAIN ? 0 : err;
}

static int may_receive(struct gridos_socket *socket)
{
	struct msghdr msg = {};
	int err = rw_verify_area(READ, socket->file, NULL, 0);

	if (err < 0)
		return err;
	iov_iter_kvec(&msg.msg_iter, ITER_DEST, NULL, 0, 0);
	err = sock_recvmsg(socket->sock, &msg, MSG_DONTWAIT | MSG_PEEK);
	return err == -EAGAIN ? 0 : min(err, 0);
}

static bool has_file(const struct gridos_io *args)
{
	return args->offset >= -1 && !args->bytes && !args->read && !args->done;
}

/* Sends, while nobody else does. */
static int send(struct transfer *transfer, struct gridos_io *args)
{
	struct gridos_socket *socket = transfer->socket;
	int err;

	if (test_and_set_bit_lock(GRIDOS_SENDS, &socket->busy))
		return -EBUSY;
	err = may_send(socket);
	if (!err)
		err = do_transfer(transfer, args);
	clear_bit_unlock(GRIDOS_SENDS, &socket->busy);
	if (!err)
		atomic64_add(args->done, &socket->sent);
	return err;
}

int gridos_io_send(struct file *file, struct gridos_io *args)
{
	struct transfer transfer = {
		.at = args->offset,
		.at_position = args->offset == -1,
		.ready = EPOLLOUT,
		.step = step_send,
	};
	int err;

	if (args->flags & ~GRIDOS_IO_NOWAIT || !has_file(args))
		return -EINVAL;
	transfer.socket = gridos_socket_get(file, args->socket);
	if (IS_ERR(transfer.socket))
		return PTR_ERR(transfer.socket);
	transfer.file = gridos_file_get(args->file, FMODE_READ);
	if (IS_ERR(transfer.file)) {
		err = PTR_ERR(transfer.file);
	} else {
		err = send(&transfer, args);
		fput(transfer.file);
	}
	gridos_socket_put(transfer.socket);
	return err;
}

int gridos_io_write(struct file *file, struct gridos_io *args)
{
	struct transfer transfer = {
		.bytes = args->bytes,
		.ready = EPOLLOUT,
		.step = step_write,
	};
	int err;

	if (args->flags & ~GRIDOS_IO_NOWAIT || args->file != -1 || args->offset || args->read ||
	    args->done)
		return -EINVAL;
	if (args->length > LONG_MAX || args->bytes > ULONG_MAX ||
	    !access_ok(u64_to_user_ptr(args->bytes), args->length))
		return -EFAULT;
	transfer.socket = gridos_socket_get(file, args->socket);
	if (IS_ERR(transfer.socket))
		return PTR_ERR(transfer.socket);
	err = send(&transfer, args);
	gridos_socket_put(transfer.socket);
	return err;
}

static int recv(struct transfer *transfer, struct gridos_io *args)
{
	struct gridos_socket *socket = transfer->socket;
	int err;

	if (!gridos_receive_begin(socket))
		return -EBUSY;
	err = may_receive(socket);
	if (!err)
		err = do_transfer(transfer, args);
	gridos_receive_end(socket);
	return err;
}

int gridos_io_recv(struct file *file, struct gridos_io *args)
{
	struct transfer transfer = {
		.at = args->offset,
		.at_position = args->offset == -1,
		.ready = EPOLLIN,
		.step = step_recv,
	};
	int err;

	if (args->flags & ~(GRIDOS_IO_NOWAIT | GRIDOS_IO_SOME) || !has_file(args))
		return -EINVAL;
	transfer.socket = gridos_socket_get(file, args->socket);
	if (IS_ERR(transfer.socket))
		return PTR_ERR(transfer.socket);
	transfer.file = gridos_file_get(args->file, FMODE_WRITE);
	if (IS_ERR(transfer.file)) {
		err = PTR_ERR(transfer.file);
	} else {
		err = recv(&transfer, args);
		fput(transfer.file);
	}
	gridos_socket_put(transfer.socket);
	return err;
}
