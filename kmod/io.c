// SPDX-License-Identifier: GPL-2.0
/*
 * Managed sockets: those that programs handed to an open file of the device.
 *
 * The file has them by number, until they are closed; what is under way sees that, and lets go
 * of them soon. The last one to do so lets the socket's file go. A list has all of them for
 * /proc/gridos/io, and until then, for those who count them: who holds one may be a worker that
 * writes to a file system that does not answer.
 *
 * Nobody takes a socket's own lock with a lock of ours held: whoever owns the socket can hold
 * the former for as long as they like.
 */
#include <linux/module.h>
#include <linux/pid_namespace.h>
#include <linux/slab.h>
#include <linux/xarray.h>
#include <net/ipv6.h>
#include <net/tcp.h>

#include "io.h"

static unsigned int max_sockets = 1024;
module_param(max_sockets, uint, 0644);
MODULE_PARM_DESC(max_sockets, "the most managed sockets, of all users");

static unsigned int max_user_sockets = 64;
module_param(max_user_sockets, uint, 0644);
MODULE_PARM_DESC(max_user_sockets, "the most managed sockets of one user");

/* The sockets of an open file. */
struct gridos_sockets {
	struct xarray by_number;
	u32 next;
};

static DEFINE_SPINLOCK(lock);
static LIST_HEAD(all);
static u64 last_order;

/* === Lives of sockets === */

void gridos_socket_hold(struct gridos_socket *socket)
{
	refcount_inc(&socket->held);
}

static void unlist(struct gridos_socket *socket)
{
	spin_lock(&lock);
	list_del_init(&socket->all);
	spin_unlock(&lock);
}

void gridos_socket_put(struct gridos_socket *socket)
{
	if (!refcount_dec_and_test(&socket->held))
		return;
	unlist(socket);
	gridos_reads_free(socket);
	fput(socket->file);
	put_pid(socket->pid);
	kfree(socket);
}

struct gridos_socket *gridos_socket_get(struct file *file, u32 number)
{
	/* Pairs with the cmpxchg() below. */
	struct gridos_sockets *sockets = smp_load_acquire(&file->private_data);
	struct gridos_socket *socket;

	if (!sockets)
		return ERR_PTR(-EBADF);
	xa_lock(&sockets->by_number);
	socket = xa_load(&sockets->by_number, number);
	if (socket)
		gridos_socket_hold(socket);
	xa_unlock(&sockets->by_number);
	if (!socket)
		return ERR_PTR(-EBADF);
	if (!uid_eq(socket->uid, current_uid()) && !gridos_sees_all()) {
		gridos_socket_put(socket);
		return ERR_PTR(-EPERM);
	}
	return socket;
}

/* Those of this open file, which has none before the first is opened. */
static struct gridos_sockets *sockets_of(struct file *file)
{
	/* Pairs with the cmpxchg() below. */
	struct gridos_sockets *sockets = smp_load_acquire(&file->private_data);
	struct gridos_sockets *fresh;

	if (sockets)
		return sockets;
	fresh = kzalloc(sizeof(*fresh), GFP_KERNEL_ACCOUNT);
	if (!fresh)
		return NULL;
	xa_init_flags(&fresh->by_number, XA_FLAGS_ALLOC1 | XA_FLAGS_ACCOUNT);
	sockets = cmpxchg(&file->private_data, NULL, fresh);
	if (!sockets)
		return fresh;
	kfree(fresh);
	return sockets;
}

static int check(struct socket *sock)
{
	struct sock *sk = sock->sk;
	int state;

	if (!sk || (sk->sk_family != AF_INET && sk->sk_family != AF_INET6) || !sk_is_tcp(sk))
		return -EPROTONOSUPPORT;
	state = READ_ONCE(sk->sk_state);
	if (state == TCP_CLOSE || state == TCP_LISTEN || state == TCP_SYN_SENT ||
	    state == TCP_SYN_RECV)
		return -ENOTCONN;
	return 0;
}

static struct gridos_socket *new_socket(struct file *file, struct socket *sock)
{
	struct gridos_socket *socket = kzalloc(sizeof(*socket), GFP_KERNEL_ACCOUNT);
	struct gridos_identity identity;

	if (!socket)
		return NULL;
	refcount_set(&socket->held, 1);
	INIT_LIST_HEAD(&socket->all);
	mutex_init(&socket->receiving);
	socket->file = get_file(file);
	socket->sock = sock;
	socket->pid = get_pid(task_tgid(current));
	socket->uid = current_uid();
	if (gridos_identify_current(&identity))
		socket->gpid = identity.gpid;
	gridos_reads_setup(socket);
	gridos_buffers_setup(socket);
	return socket;
}

/* Lists it, if there may be another. */
static int enlist(struct gridos_socket *socket)
{
	unsigned int count = 0, of_user = 0;
	struct gridos_socket *other;
	int err = 0;

	spin_lock(&lock);
	list_for_each_entry(other, &all, all) {
		count++;
		of_user += uid_eq(other->uid, socket->uid);
		if (other->sock == socket->sock && !READ_ONCE(other->closed))
			err = -EEXIST;
	}
	if (!err && count >= READ_ONCE(max_sockets))
		err = -EBUSY;
	if (!err && of_user >= READ_ONCE(max_user_sockets))
		err = -EDQUOT;
	if (!err) {
		socket->order = ++last_order;
		list_add_tail(&socket->all, &all);
	}
	spin_unlock(&lock);
	return err;
}

static int open_socket(struct gridos_sockets *sockets, struct file *file, u32 *number)
{
	struct socket *sock = sock_from_file(file);
	struct gridos_socket *socket;
	int err;

	if (!sock)
		return -ENOTSOCK;
	err = check(sock);
	if (err)
		return err;
	socket = new_socket(file, sock);
	if (!socket)
		return -ENOMEM;
	err = enlist(socket);
	if (!err) {
		/* Numbers are not soon used again: who closes one too much closes no other. */
		err = xa_alloc_cyclic(&sockets->by_number, number, socket, xa_limit_31b,
				      &sockets->next, GFP_KERNEL_ACCOUNT);
		if (err >= 0)
			return 0;
	}
	gridos_socket_put(socket);
	return err;
}

int gridos_io_open(struct file *file, struct gridos_io_open *args)
{
	struct gridos_sockets *sockets;
	struct file *of_socket;
	int err;

	if (args->flags || args->socket)
		return -EINVAL;
	of_socket = fget(args->fd);
	if (!of_socket)
		return -EBADF;
	sockets = sockets_of(file);
	err = sockets ? open_socket(sockets, of_socket, &args->socket) : -ENOMEM;
	fput(of_socket);
	return err;
}

/* It has no number any more. */
static void close_socket(struct gridos_socket *socket, bool may_wait)
{
	WRITE_ONCE(socket->closed, true);
	wake_up_all(sk_sleep(socket->sock->sk));
	gridos_reads_stop(socket, may_wait);
	gridos_socket_put(socket);
}

int gridos_io_close(struct file *file, const struct gridos_io_open *args)
{
	struct gridos_socket *socket;
	struct gridos_sockets *sockets;

	if (args->flags || args->fd)
		return -EINVAL;
	socket = gridos_socket_get(file, args->socket);
	if (IS_ERR(socket))
		return PTR_ERR(socket);
	sockets = file->private_data;
	/* Another may have been faster. */
	if (xa_cmpxchg(&sockets->by_number, args->socket, socket, NULL, 0) == socket)
		close_socket(socket, true);
	gridos_socket_put(socket);
	return 0;
}

/* The device's file is closed: nobody calls with it any more. It waits for nothing. */
void gridos_io_release(struct file *file)
{
	struct gridos_sockets *sockets = file->private_data;
	struct gridos_socket *socket;
	unsigned long number;

	if (!sockets)
		return;
	xa_for_each(&sockets->by_number, number, socket)
		close_socket(socket, false);
	xa_destroy(&sockets->by_number);
	kfree(sockets);
}

/* === /proc/gridos/io: positions are orders, as in gpids === */

/* The first at least this old, held. */
static struct gridos_socket *first_from(u64 order)
{
	struct gridos_socket *socket, *found = NULL;

	spin_lock(&lock);
	list_for_each_entry(socket, &all, all) {
		/* Whoever lets go of it last unlists it then. */
		if (socket->order >= order && !READ_ONCE(socket->closed) &&
		    refcount_inc_not_zero(&socket->held)) {
			found = socket;
			break;
		}
	}
	spin_unlock(&lock);
	return found;
}

static void *io_start(struct seq_file *seq, loff_t *pos)
{
	struct gridos_socket *socket;

	if (!*pos)
		return SEQ_START_TOKEN;
	socket = first_from(*pos);
	if (socket)
		*pos = socket->order;
	return socket;
}

static void io_stop(struct seq_file *seq, void *v)
{
	if (v && v != SEQ_START_TOKEN)
		gridos_socket_put(v);
}

static void *io_next(struct seq_file *seq, void *v, loff_t *pos)
{
	struct gridos_socket *socket = first_from(*pos + 1);

	io_stop(seq, v);
	*pos = socket ? socket->order : *pos + 1;
	return socket;
}

static void show_peer(struct seq_file *seq, const struct sock *sk)
{
	u16 port = ntohs(READ_ONCE(inet_sk(sk)->inet_dport));

#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family == AF_INET6) {
		seq_printf(seq, "[%pI6c]:%u", &sk->sk_v6_daddr, port);
		return;
	}
#endif
	seq_printf(seq, "%pI4:%u", &inet_sk(sk)->inet_daddr, port);
}

static int io_show(struct seq_file *seq, void *v)
{
	struct gridos_socket *socket = v;
	struct gridos_measured measured;
	const struct sock *sk;

	if (v == SEQ_START_TOKEN) {
		seq_puts(seq,
			 "gpid\tpid\tpeer\tsent\treceived\tout\tin\trtt\trate_out\trate_in\n");
		return 0;
	}
	if (!pid_vnr(socket->pid) || (!uid_eq(socket->uid, current_uid()) && !gridos_sees_all()))
		return SEQ_SKIP;
	sk = socket->sock->sk;
	gridos_measure(socket, &measured);
	if (socket->gpid)
		seq_printf(seq, "%u.%u", GRIDOS_GPID_NODE(socket->gpid),
			   GRIDOS_GPID_SERIAL(socket->gpid));
	else
		seq_putc(seq, '-');
	seq_printf(seq, "\t%d\t", pid_vnr(socket->pid));
	show_peer(seq, sk);
	seq_printf(seq, "\t%lld\t%lld\t%d\t%d\t%u\t%llu\t%llu\n", atomic64_read(&socket->sent),
		   atomic64_read(&socket->received), READ_ONCE(sk->sk_sndbuf) / 2,
		   READ_ONCE(sk->sk_rcvbuf) / 2, measured.rtt_us, measured.rate_out,
		   measured.rate_in);
	return 0;
}

const struct seq_operations gridos_io_seq = {
	.start = io_start,
	.next = io_next,
	.stop = io_stop,
	.show = io_show,
};

/* === Loading and unloading === */

int gridos_io_init(void)
{
	return gridos_reads_init();
}

/* When the device is not open, and so no socket is left but in the last work for it. */
void gridos_io_exit(void)
{
	gridos_reads_exit();
}
