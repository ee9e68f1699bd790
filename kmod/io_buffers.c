// SPDX-License-Identifier: GPL-2.0
/*
 * The sizes of a managed socket's buffers, and what is measured of its connection.
 *
 * What a sender must keep is what is under way, one bandwidth-delay product: the rate at which
 * bytes arrive, times the time until the sender hears so (RFC 7323, section 1). Twice as much
 * lets the program fill one half while the other is under way. TCP measures the rate at which
 * bytes that were sent have arrived, and the shortest round trip of the last minutes; the rate
 * at which bytes are taken from the socket is measured here, in windows of a tenth of a second.
 *
 * Buffers that are set are no longer sized by TCP. net.core.wmem_max and rmem_max do not bound
 * them, but the module's own max_buffer, and TCP's memory in all (net.ipv4.tcp_mem).
 */
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/module.h>
#include <linux/win_minmax.h>
#include <net/tcp.h>

#include "io.h"

#define LEAST		65536
#define SMALLEST	4096
#define LARGEST		(512u * 1024 * 1024)
#define WINDOW_NS	(100 * NSEC_PER_MSEC)

static unsigned int max_buffer = 4 * 1024 * 1024;
module_param(max_buffer, uint, 0644);
MODULE_PARM_DESC(max_buffer, "the most bytes of a managed socket's buffer, each way");

static u32 highest(void)
{
	return clamp(READ_ONCE(max_buffer), (u32)SMALLEST, LARGEST);
}

/* === Measuring === */

static u64 rate_out(const struct tcp_sock *tp)
{
	u32 interval = READ_ONCE(tp->rate_interval_us);

	if (!interval)
		return 0;
	return div_u64((u64)READ_ONCE(tp->rate_delivered) * READ_ONCE(tp->mss_cache) *
		       USEC_PER_SEC, interval);
}

void gridos_measure(const struct gridos_socket *socket, struct gridos_measured *measured)
{
	struct tcp_sock *tp = tcp_sk(socket->sock->sk);
	u32 min_rtt = minmax_get(&tp->rtt_min);

	measured->rtt_us = READ_ONCE(tp->srtt_us) >> 3;
	/* Before the first it is the highest number. */
	measured->min_rtt_us = min_rtt == ~0U ? 0 : min_rtt;
	measured->rate_out = rate_out(tp);
	measured->rate_in = READ_ONCE(socket->rate_in);
	measured->product = mul_u64_u32_div(max(measured->rate_out, measured->rate_in),
					    measured->min_rtt_us, USEC_PER_SEC);
}

void gridos_count_received(struct gridos_socket *socket, size_t len)
{
	u64 now = ktime_get_ns(), elapsed = now - socket->window_begin, rate;

	lockdep_assert_held(&socket->receiving);
	atomic64_add(len, &socket->received);
	/* Nothing was taken for long: that time says nothing of the connection. */
	if (elapsed > 20 * WINDOW_NS) {
		socket->window_begin = now;
		socket->window_bytes = 0;
		return;
	}
	socket->window_bytes += len;
	if (elapsed < WINDOW_NS)
		return;
	rate = div64_u64(socket->window_bytes * NSEC_PER_SEC, elapsed);
	WRITE_ONCE(socket->rate_in,
		   socket->rate_in ? (3 * socket->rate_in + rate) / 4 : rate);
	socket->window_begin = now;
	socket->window_bytes = 0;
}

/* === Sizes === */

static void set_out(struct sock *sk, u32 bytes)
{
	lock_sock(sk);
	sk->sk_userlocks |= SOCK_SNDBUF_LOCK;
	WRITE_ONCE(sk->sk_sndbuf, max_t(int, 2 * bytes, SOCK_MIN_SNDBUF));
	/* Whoever waits may go on. */
	sk->sk_write_space(sk);
	release_sock(sk);
}

static void set_in(struct sock *sk, u32 bytes)
{
	struct tcp_sock *tp = tcp_sk(sk);

	lock_sock(sk);
	sk->sk_userlocks |= SOCK_RCVBUF_LOCK;
	WRITE_ONCE(sk->sk_rcvbuf, max_t(int, 2 * bytes, SOCK_MIN_RCVBUF));
	/* It was chosen when the connection was made, for the buffer that there was. */
	WRITE_ONCE(tp->window_clamp, max_t(u32, tp->window_clamp,
					   tcp_win_from_space(sk, sk->sk_rcvbuf)));
	release_sock(sk);
}

void gridos_buffers_setup(struct gridos_socket *socket)
{
	socket->max = highest();
	socket->adapted = jiffies;
}

static u32 wanted(const struct gridos_socket *socket, u64 rate, u32 min_rtt_us)
{
	u64 bytes = 2 * mul_u64_u32_div(rate, min_rtt_us, USEC_PER_SEC);
	u32 max = READ_ONCE(socket->max);

	return clamp_t(u64, bytes, min_t(u32, LEAST, max), max);
}

static void adapt(struct gridos_socket *socket)
{
	struct sock *sk = socket->sock->sk;
	struct gridos_measured measured;
	u32 bytes;

	gridos_measure(socket, &measured);
	bytes = wanted(socket, measured.rate_out, measured.min_rtt_us);
	if (bytes != READ_ONCE(sk->sk_sndbuf) / 2)
		set_out(sk, bytes);
	bytes = wanted(socket, measured.rate_in, measured.min_rtt_us);
	/* A window that was offered is not taken back. */
	if (bytes > READ_ONCE(sk->sk_rcvbuf) / 2)
		set_in(sk, bytes);
}

void gridos_buffers_adapt(struct gridos_socket *socket)
{
	if (!READ_ONCE(socket->automatic) ||
	    time_before(jiffies, READ_ONCE(socket->adapted) + HZ / 4))
		return;
	WRITE_ONCE(socket->adapted, jiffies);
	adapt(socket);
}

/* === Operations === */

static void tell(const struct gridos_socket *socket, struct gridos_io_buffers *args)
{
	const struct sock *sk = socket->sock->sk;
	struct gridos_measured measured;

	gridos_measure(socket, &measured);
	args->flags = READ_ONCE(socket->automatic) ? GRIDOS_IO_BUFFER_AUTO : 0;
	args->rtt_us = measured.rtt_us;
	args->min_rtt_us = measured.min_rtt_us;
	args->out = READ_ONCE(sk->sk_sndbuf) / 2;
	args->in = READ_ONCE(sk->sk_rcvbuf) / 2;
	args->max = READ_ONCE(socket->max);
	args->rate_out = measured.rate_out;
	args->rate_in = measured.rate_in;
	args->product = measured.product;
	args->sent = atomic64_read(&socket->sent);
	args->received = atomic64_read(&socket->received);
}

int gridos_io_getopt(struct file *file, struct gridos_io_buffers *args)
{
	struct gridos_socket *socket;

	if (args->flags || args->reserved)
		return -EINVAL;
	socket = gridos_socket_get(file, args->socket);
	if (IS_ERR(socket))
		return PTR_ERR(socket);
	tell(socket, args);
	gridos_socket_put(socket);
	return 0;
}

static void set(struct gridos_socket *socket, const struct gridos_io_buffers *args)
{
	struct sock *sk = socket->sock->sk;

	if (args->flags & GRIDOS_IO_BUFFER_MAX)
		WRITE_ONCE(socket->max, clamp_t(u64, args->max, SMALLEST, highest()));
	if (args->flags & (GRIDOS_IO_BUFFER_OUT | GRIDOS_IO_BUFFER_IN | GRIDOS_IO_BUFFER_AUTO))
		WRITE_ONCE(socket->automatic, args->flags & GRIDOS_IO_BUFFER_AUTO);
	if (args->flags & GRIDOS_IO_BUFFER_OUT)
		set_out(sk, min_t(u64, args->out, socket->max));
	if (args->flags & GRIDOS_IO_BUFFER_IN)
		set_in(sk, min_t(u64, args->in, socket->max));
	if (args->flags & GRIDOS_IO_BUFFER_AUTO)
		adapt(socket);
}

int gridos_io_setopt(struct file *file, struct gridos_io_buffers *args)
{
	const u32 sizes = GRIDOS_IO_BUFFER_OUT | GRIDOS_IO_BUFFER_IN;
	struct gridos_socket *socket;

	if (!args->flags || args->reserved ||
	    args->flags & ~(sizes | GRIDOS_IO_BUFFER_MAX | GRIDOS_IO_BUFFER_AUTO) ||
	    (args->flags & GRIDOS_IO_BUFFER_AUTO && args->flags & sizes))
		return -EINVAL;
	if ((args->flags & GRIDOS_IO_BUFFER_OUT && !args->out) ||
	    (args->flags & GRIDOS_IO_BUFFER_IN && !args->in))
		return -EINVAL;
	socket = gridos_socket_get(file, args->socket);
	if (IS_ERR(socket))
		return PTR_ERR(socket);
	set(socket, args);
	tell(socket, args);
	gridos_socket_put(socket);
	return 0;
}
