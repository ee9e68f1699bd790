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
 *	RECV	one copy, from the packets to the page cache. Packets stay in the socket until
 *		the file has taken them, so that a full disk loses no byte; clones of them keep
 *		them in memory meanwhile, as the socket may be used by others.
 *	WRITE	one copy, from the program's memory to packets, as send() does.
 */
#include <linux/fsnotify.h>
#include <linux/module.h>
#include <linux/pipe_fs_i.h>
#include <linux/sched/signal.h>
#include <linux/skbuff.h>
#include <linux/splice.h>
#include <linux/uaccess.h>
#include <net/tcp.h>

#include "io.h"

/* So many steps in a row come to nothing, though there was something to do: it is no race. */
#define VAIN_STEPS 8

/* === A file to a socket === */

struct sending {
	struct socket *sock;
	/* Bytes that are wanted and that the file has, as far as is known. */
	u64 left;
};

/* The packets share the page. */
static int send_page(struct socket *sock, struct page *page, unsigned int offset, size_t len,
		     int flags)
{
#ifdef MSG_SENDPAGE_NOTLAST
	return kernel_sendpage(sock, page, offset, len, flags);
#else
	struct bio_vec part = { .bv_page = page, .bv_offset = offset, .bv_len = len };
	struct msghdr msg = { .msg_flags = flags | MSG_SPLICE_PAGES };

	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, &part, 1, len);
	return sock_sendmsg(sock, &msg);
#endif
}

static int send_buffer(struct pipe_inode_info *pipe, struct pipe_buffer *buf,
		       struct splice_desc *sd)
{
	struct sending *sending = sd->u.data;
	int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
	int sent;

	if (!sendpage_ok(buf->page))
		return -EINVAL;
	if (sd->len < sending->left)
		flags |= MSG_MORE;
	sent = send_page(sending->sock, buf->page, buf->offset, sd->len, flags);
	if (sent > 0)
		sending->left -= min_t(u64, sent, sending->left);
	return sent;
}

static int send_pipe(struct pipe_inode_info *pipe, struct splice_desc *sd)
{
	return __splice_from_pipe(pipe, sd, send_buffer);
}

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

/* === A socket to a file === */

static void drop_batch(struct gridos_batch *batch)
{
	while (batch->packet_count)
		consume_skb(batch->packets[--batch->packet_count]);
	batch->part_count = 0;
	batch->len = 0;
}

static bool add_part(struct gridos_batch *batch, void *base, size_t len)
{
	if (batch->part_count == GRIDOS_BATCH_PARTS)
		return false;
	batch->parts[batch->part_count++] = (struct kvec){ .iov_base = base, .iov_len = len };
	batch->len += len;
	return true;
}

/* Adds these bytes of a packet, or as many of them as there is room for. */
static int add_bytes(struct gridos_batch *batch, struct sk_buff *skb, u32 from, u32 len)
{
	u32 head = skb_headlen(skb), part;
	struct sk_buff *child;
	int i;

	if (from < head) {
		part = min(len, head - from);
		if (!add_part(batch, skb->data + from, part))
			return 0;
		len -= part;
		from += part;
	}
	from -= head;
	for (i = 0; len && i < skb_shinfo(skb)->nr_frags; i++) {
		const skb_frag_t *frag = &skb_shinfo(skb)->frags[i];
		struct page *page = skb_frag_page(frag);
		u32 size = skb_frag_size(frag);

		if (from >= size) {
			from -= size;
			continue;
		}
		/* Memory of a device, or such as the kernel cannot reach at once. */
		if (!page || PageHighMem(page))
			return -EOPNOTSUPP;
		part = min(len, size - from);
		if (!add_part(batch, skb_frag_address(frag) + from, part))
			return 0;
		len -= part;
		from = 0;
	}
	if (!len)
		return 0;
	skb_walk_frags(skb, child) {
		if (from >= child->len) {
			from -= child->len;
			continue;
		}
		/* Packets are joined to a packet, not to one of those. */
		if (skb_has_frag_list(child))
			return -EOPNOTSUPP;
		part = min(len, child->len - from);
		i = add_bytes(batch, child, from, part);
		len -= part;
		from = 0;
		if (i || !len)
			return i;
	}
	return 0;
}

/* Why nothing is there: 0 if nothing will come any more. */
static int why_empty(struct sock *sk)
{
	if (sock_flag(sk, SOCK_DONE))
		return 0;
	/* It stays, for whoever asks next: this transfer may have moved bytes, and so succeed. */
	if (sk->sk_err)
		return -sk->sk_err;
	if (sk->sk_shutdown & RCV_SHUTDOWN)
		return 0;
	return sk->sk_state == TCP_CLOSE ? -ENOTCONN : -EAGAIN;
}

/* Makes the batch of what has arrived, without taking it from the socket. */
static int collect(struct gridos_socket *socket, size_t want)
{
	struct gridos_batch *batch = &socket->batch;
	struct sock *sk = socket->sock->sk;
	struct tcp_sock *tp = tcp_sk(sk);
	struct sk_buff *skb;
	int err = 0;
	u32 seq;

	lock_sock(sk);
	/* With a protocol on top of TCP, what is in the queue is not what the program is sent. */
	if (READ_ONCE(sk->sk_prot)->recvmsg != tcp_prot.recvmsg)
		err = -EOPNOTSUPP;
	else if (sk->sk_state == TCP_LISTEN)
		err = -ENOTCONN;
	if (err)
		goto out;
	seq = tp->copied_seq;
	batch->seq = seq;
	skb_queue_walk(&sk->sk_receive_queue, skb) {
		u32 offset = seq - TCP_SKB_CB(skb)->seq, len;
		size_t before = batch->len;
		struct sk_buff *clone;

		if (offset >= skb->len)
			continue;
		len = min_t(size_t, skb->len - offset, want - before);
		if (unlikely(tp->urg_data)) {
			len = min(len, tp->urg_seq - seq);
			if (!len && !before)
				err = -EBADMSG;
		}
		if (!len || batch->packet_count == GRIDOS_BATCH_PACKETS)
			break;
		clone = skb_clone(skb, GFP_KERNEL);
		if (!clone) {
			err = -ENOMEM;
			break;
		}
		batch->packets[batch->packet_count++] = clone;
		err = add_bytes(batch, clone, offset, len);
		seq += batch->len - before;
		if (err || batch->len - before < len || batch->len == want)
			break;
	}
	/* What is there comes first. */
	if (batch->len)
		err = 0;
	else if (!err)
		err = why_empty(sk);
out:
	release_sock(sk);
	return err;
}

static int skip(read_descriptor_t *desc, struct sk_buff *skb, unsigned int offset, size_t len)
{
	len = min(len, desc->count);
	desc->count -= len;
	return len;
}

/* Takes the first bytes of the batch from the socket, if nobody else has. */
static int take(struct gridos_socket *socket, size_t len)
{
	struct sock *sk = socket->sock->sk;
	read_descriptor_t desc = { .count = len };
	bool taken;

	lock_sock(sk);
	taken = tcp_sk(sk)->copied_seq == socket->batch.seq &&
		tcp_read_sock(sk, &desc, skip) == len;
	release_sock(sk);
	return taken ? 0 : -EIO;
}

static ssize_t write_batch(struct gridos_batch *batch, struct file *file, loff_t *pos, u64 limit)
{
	struct kiocb kiocb;
	struct iov_iter from;
	ssize_t done;

	if (*pos >= 0 && *pos >= limit)
		return -EFBIG;
	done = rw_verify_area(WRITE, file, pos, batch->len);
	if (done < 0)
		return done;
	iov_iter_kvec(&from, ITER_SOURCE, batch->parts, batch->part_count, batch->len);
	iov_iter_truncate(&from, limit - *pos);
	init_sync_kiocb(&kiocb, file);
	kiocb.ki_pos = *pos;
	file_start_write(file);
	done = file->f_op->write_iter(&kiocb, &from);
	if (done > 0) {
		*pos = kiocb.ki_pos;
		fsnotify_modify(file);
	}
	file_end_write(file);
	return done;
}

ssize_t gridos_step_to_file(struct gridos_socket *socket, struct file *file, loff_t *pos,
			    size_t len, u64 limit)
{
	ssize_t done = 0;
	int err;

	lockdep_assert_held(&socket->receiving);
	err = collect(socket, min_t(size_t, len, GRIDOS_IO_STEP));
	if (!err && socket->batch.len) {
		done = write_batch(&socket->batch, file, pos, limit);
		/* A file that takes nothing would be asked for ever. */
		err = done > 0 ? take(socket, done) : done ?: -EIO;
	}
	drop_batch(&socket->batch);
	if (err)
		return err;
	gridos_count_received(socket, done);
	return done;
}

ssize_t gridos_step_to_iter(struct gridos_socket *socket, struct iov_iter *to)
{
	struct msghdr msg = { .msg_iter = *to };
	ssize_t done;

	lockdep_assert_held(&socket->receiving);
	done = sock_recvmsg(socket->sock, &msg, MSG_DONTWAIT);
	if (done > 0)
		gridos_count_received(socket, done);
	return done;
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
