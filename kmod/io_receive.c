// SPDX-License-Identifier: GPL-2.0
/*
 * What has arrived in a managed socket goes to a file or to memory, in steps that wait for no
 * peer.
 *
 *	collect		the packets that are in the socket, by clones that share their bytes
 *	write		the file takes them, or as many of them as it can: this is the one copy
 *	take		those that it took leave the socket
 *
 * So a full disk loses no byte. The socket's lock is not held while the file is written, which
 * may take long: others may use the socket meanwhile. Clones keep the bytes in memory, and if
 * somebody else has taken bytes, that is seen, and told.
 */
#include <linux/fsnotify.h>
#include <linux/skbuff.h>
#include <net/tcp.h>

#include "io.h"

static void drop_batch(struct gridos_batch *batch)
{
	while (batch->packet_count)
		consume_skb(batch->packets[--batch->packet_count]);
	batch->part_count = 0;
	batch->len = 0;
}

/* Whether there is room for one more part of this kind. */
static bool has_room(struct gridos_batch *batch, bool on_pages)
{
	if (!batch->part_count)
		batch->on_pages = on_pages;
	return batch->on_pages == on_pages && batch->part_count < GRIDOS_BATCH_PARTS;
}

static bool add_head(struct gridos_batch *batch, void *base, size_t len)
{
	if (!has_room(batch, false))
		return false;
	batch->heads[batch->part_count++] = (struct kvec){ .iov_base = base, .iov_len = len };
	batch->len += len;
	return true;
}

static bool add_page(struct gridos_batch *batch, struct page *page, unsigned int offset, size_t len)
{
	if (!has_room(batch, true))
		return false;
	batch->pages[batch->part_count++] = (struct bio_vec){
		.bv_page = page, .bv_offset = offset, .bv_len = len,
	};
	batch->len += len;
	return true;
}

/* Adds these bytes of a packet, or as many of them as there is room for. */
static int add_bytes(struct gridos_batch *batch, struct sk_buff *skb, u32 from, u32 len)
{
	u32 head = skb_headlen(skb), part;
	struct sk_buff *child;
	size_t before;
	int i;

	if (from < head) {
		part = min(len, head - from);
		if (!add_head(batch, skb->data + from, part))
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
		/* Memory of a device. */
		if (!page)
			return -EOPNOTSUPP;
		part = min(len, size - from);
		if (!add_page(batch, page, skb_frag_off(frag) + from, part))
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
		before = batch->len;
		i = add_bytes(batch, child, from, part);
		/* One that is in it in part is the last: there must be no gap. */
		if (i || batch->len - before < part)
			return i;
		len -= part;
		from = 0;
		if (!len)
			return 0;
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
	if (batch->on_pages)
		iov_iter_bvec(&from, ITER_SOURCE, batch->pages, batch->part_count, batch->len);
	else
		iov_iter_kvec(&from, ITER_SOURCE, batch->heads, batch->part_count, batch->len);
	iov_iter_truncate(&from, limit - *pos);
	init_sync_kiocb(&kiocb, file);
	/* It may have got these since it was named; from here on, they are fixed. */
	if (kiocb.ki_flags & (IOCB_APPEND | IOCB_DIRECT))
		return -EINVAL;
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
