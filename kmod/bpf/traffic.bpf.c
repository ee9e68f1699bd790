// SPDX-License-Identifier: GPL-2.0
/*
 * Counts what every process of a task sends and receives, by the address of the other side: of all its sockets, also of those that
 * are closed.
 *
 *	socket made ──▶ its owner, in the socket's storage ──▶ each packet: flows[owner, other side]
 *	  └─ listens ──▶ the accepted ones have the same owner
 *
 * A TCP connection has one other side, so that its packets are counted in the socket's storage first, and from there in flows: the
 * first at once, then every BATCH packets, when the agent asks (find), and when it is closed; what follows that, at once.
 *
 * One that was there before these programs were, or that was restored, belongs to whoever is found with it. Packets are counted in a control group that all
 * tasks are below, as they are on the wire, with their IP headers: also those that the stack leaves to the network card to cut up, or
 * that came put together.
 */
#include "marks.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define IPPROTO_HOPOPTS 0
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define TCP_LISTEN 10

/* Packets of a connection that are counted in its storage alone at most. */
#define BATCH 64

struct sock_common {
	__u16 skc_family;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
} __attribute__((preserve_access_index));

struct socket {
	struct sock *sk;
} __attribute__((preserve_access_index));

struct bpf_iter__task_file {
	struct task_struct *task;
	struct file *file;
} __attribute__((preserve_access_index));

/* Who sends to whom; with agent/kernel/src/traffic.rs. */
struct flow {
	u64 gpid;
	unsigned char remote[16];	/* an IPv4 address as ::ffff:a.b.c.d */
};

struct counts {
	u64 sent;
	u64 sent_packets;
	u64 received;
	u64 received_packets;
};

/* What is known of a socket. */
struct owner {
	struct flow flow;	/* whose it is; of a connection also its other side, once it has one */
	struct counts counts;	/* that are not in flows yet */
	u64 closed;
};

/* Accepted ones get that of the one that listens. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct owner);
} sockets SEC(".maps");

/* Those that were silent for the longest time make room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 13);
	__type(key, struct flow);
	__type(value, struct counts);
} flows SEC(".maps");

char LICENSE[] SEC("license") = "GPL";

static __always_inline u64 gpid_of(struct task_struct *task)
{
	struct mark *mark = bpf_task_storage_get(&marks, task, 0, 0);

	return mark && mark->kind == PROCESS ? mark->gpid : 0;
}

/* The counts of a flow, which is made if it is not there. */
static __always_inline struct counts *counts_of(struct flow *flow)
{
	struct counts *counts = bpf_map_lookup_elem(&flows, flow), none = {};

	if (!counts) {
		/* Another processor may have been first. */
		bpf_map_update_elem(&flows, flow, &none, BPF_NOEXIST);
		counts = bpf_map_lookup_elem(&flows, flow);
	}
	return counts;
}

static __always_inline void move(u64 *from, u64 *to)
{
	u64 count = __sync_lock_test_and_set(from, 0);

	if (count)
		__sync_fetch_and_add(to, count);
}

/* Puts into flows what is in a socket's storage alone. */
static __always_inline void settle(struct owner *owner)
{
	struct flow flow = owner->flow;
	struct counts *counts;

	if (!owner->counts.sent_packets && !owner->counts.received_packets)
		return;
	counts = counts_of(&flow);
	if (!counts)
		return;
	move(&owner->counts.sent, &counts->sent);
	move(&owner->counts.sent_packets, &counts->sent_packets);
	move(&owner->counts.received, &counts->received);
	move(&owner->counts.received_packets, &counts->received_packets);
}

static __always_inline int is_inet(struct sock *sock)
{
	__u16 family = sock->__sk_common.skc_family;

	return family == AF_INET || family == AF_INET6;
}

/*
 * Two programs for the same, of which one is loaded. The first runs where other programs than those that trace may ask for a task's
 * storage (Linux 6.16), the second where functions may be traced.
 */
SEC("cgroup/sock_create")
int made(struct bpf_sock *sock)
{
	struct owner owner = { .flow.gpid = gpid_of(bpf_get_current_task_btf()) };

	if (owner.flow.gpid && (sock->family == AF_INET || sock->family == AF_INET6))
		bpf_sk_storage_get(&sockets, sock, &owner, BPF_SK_STORAGE_GET_F_CREATE);
	return 1;
}

SEC("cgroup/sock_release")
int closed(struct bpf_sock *sock)
{
	struct owner *owner = bpf_sk_storage_get(&sockets, sock, 0, 0);

	if (owner) {
		owner->closed = 1;
		settle(owner);
	}
	return 1;
}

SEC("fexit/sock_init_data")
int BPF_PROG(traced, struct socket *socket, struct sock *sock)
{
	struct owner owner = { .flow.gpid = gpid_of(bpf_get_current_task_btf()) };

	if (owner.flow.gpid && sock && is_inet(sock))
		bpf_sk_storage_get(&sockets, sock, &owner, BPF_SK_STORAGE_GET_F_CREATE);
	return 0;
}

/* Tells nothing: to read it is to find whose the sockets are that have no owner, and to have all in flows that was counted. */
SEC("iter/task_file")
int find(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct owner new = {}, *owner;
	struct sock *sock;

	if (!task || !file)
		return 0;
	new.flow.gpid = gpid_of(task);
	if (!new.flow.gpid)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sock = socket->sk;
	if (!sock || !is_inet(sock))
		return 0;
	owner = bpf_sk_storage_get(&sockets, sock, &new, BPF_SK_STORAGE_GET_F_CREATE);
	if (owner)
		settle(owner);
	return 0;
}

/*
 * The bytes of packets that were put together: each has headers of its own. Before what is too large for the length in its header, IPv6
 * has another one, which goes when it is cut up (RFC 2675).
 */
static __always_inline u64 on_the_wire(struct __sk_buff *skb, u64 packets)
{
	u64 bytes = skb->len, more = packets - 1;
	unsigned char byte, kind;
	u32 size = 40, at = 40;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, 0, &byte, 1) || bpf_skb_load_bytes(skb, 9, &kind, 1))
			return bytes;
		size = at = (byte & 0xf) * 4;
	} else {
		if (bpf_skb_load_bytes(skb, 6, &kind, 1))
			return bytes;
		if (kind == IPPROTO_HOPOPTS) {
			if (bpf_skb_load_bytes(skb, at, &kind, 1))
				return bytes;
			at += 8;
			bytes -= 8;
		}
	}
	if (kind == IPPROTO_UDP)
		size += 8;
	else if (kind == IPPROTO_TCP && !bpf_skb_load_bytes(skb, at + 12, &byte, 1))
		size += (byte >> 4) * 4;
	return bytes + more * size;
}

static __always_inline void add(struct counts *counts, int goes_out, u64 bytes, u64 packets)
{
	if (goes_out) {
		__sync_fetch_and_add(&counts->sent, bytes);
		__sync_fetch_and_add(&counts->sent_packets, packets);
	} else {
		__sync_fetch_and_add(&counts->received, bytes);
		__sync_fetch_and_add(&counts->received_packets, packets);
	}
}

/* Whether this is the other side of a connection, as its flow names it; another one takes the place of that before. */
static __always_inline int is_remote(struct owner *owner, u32 a, u32 b, u32 c, u32 d)
{
	u32 *remote = (u32 *)owner->flow.remote;

	if (remote[0] == a && remote[1] == b && remote[2] == c && remote[3] == d)
		return 1;
	settle(owner);
	remote[0] = a;
	remote[1] = b;
	remote[2] = c;
	remote[3] = d;
	return 0;
}

/* Counts a packet of a connection. */
static __always_inline void count_in(struct owner *owner, struct bpf_sock *sock, int goes_out, u64 bytes, u64 packets)
{
	int known;

	if (sock->family == AF_INET)
		known = is_remote(owner, 0, 0, bpf_htonl(0xffff), sock->dst_ip4);
	else
		known = is_remote(owner, sock->dst_ip6[0], sock->dst_ip6[1], sock->dst_ip6[2], sock->dst_ip6[3]);
	add(&owner->counts, goes_out, bytes, packets);
	if (!known || owner->closed || owner->counts.sent_packets + owner->counts.received_packets >= BATCH)
		settle(owner);
}

static __always_inline int count(struct __sk_buff *skb, int goes_out)
{
	u64 packets = skb->gso_segs, bytes = skb->len;
	struct bpf_sock *sock = skb->sk;
	struct counts *counts;
	struct owner *owner;
	struct flow flow = {};

	sock = sock ? bpf_sk_fullsock(sock) : sock;
	if (!sock)
		return 1;
	owner = bpf_sk_storage_get(&sockets, sock, 0, 0);
	if (!owner)
		return 1;
	if (packets > 1)
		bytes = on_the_wire(skb, packets);
	else
		packets = 1;
	if (sock->protocol == IPPROTO_TCP && sock->state != TCP_LISTEN) {
		count_in(owner, sock, goes_out, bytes, packets);
		return 1;
	}
	flow.gpid = owner->flow.gpid;
	/* Where the addresses are in the header: RFC 791, RFC 8200. */
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		flow.remote[10] = flow.remote[11] = 0xff;
		if (bpf_skb_load_bytes(skb, goes_out ? 16 : 12, flow.remote + 12, 4))
			return 1;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, goes_out ? 24 : 8, flow.remote, 16))
			return 1;
	} else {
		return 1;
	}
	counts = counts_of(&flow);
	if (counts)
		add(counts, goes_out, bytes, packets);
	return 1;
}

SEC("cgroup_skb/egress")
int leaves(struct __sk_buff *skb)
{
	return count(skb, 1);
}

SEC("cgroup_skb/ingress")
int comes(struct __sk_buff *skb)
{
	return count(skb, 0);
}
