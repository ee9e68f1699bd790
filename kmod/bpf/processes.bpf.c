// SPDX-License-Identifier: GPL-2.0
/*
 * Follows every process of every task from its first instruction, and gives it its GPID.
 *
 * What a thread is to the grid lies in its task storage, a mark, which a child gets from its parent before it runs:
 *
 *	 KEEPER ──fork──▶ KEEPER		the agent and its shims
 *	   │
 *	   └─ fork into a pid namespace ──▶ INIT (as its process 1) ──fork──▶ PROCESS ──fork──▶ PROCESS
 *	   └─ otherwise inside of one ────▶ VISITOR ──fork──▶ VISITOR
 *
 * Visitors are what makes a task from its checkpoint, and the processes that it makes: those get the GPIDs that
 * they had. The agent does this, and marks what was there before these programs were, by orders; they are carried out
 * when the list is read.
 *
 * The structs are the parts that are used of the kernel's own; CO-RE finds where they are.
 */
#include "marks.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#define COMM 16

/* What the agent lets be given out; it alone writes here. */
struct limit {
	u64 node;	/* in the upper half */
	u64 end;	/* the first serial that may not be */
};

/* What was given out; after the start written here alone. */
struct serials {
	u64 next;
	u64 missed;	/* processes that got none */
	u64 unmarked;	/* for which there was no memory */
	u64 lost;	/* ends that found no room in the ring */
};

/* One thread, as the list has it; the leader's has what its ended threads used as well. */
struct entry {
	struct mark mark;
	u64 born;	/* nanoseconds of CLOCK_BOOTTIME */
	u64 ran;	/* nanoseconds on a processor */
	u64 waited;	/* nanoseconds in a run queue */
	u64 minor;
	u64 major;
	u64 voluntary;
	u64 involuntary;
	u32 pid;	/* of the process */
	u32 tid;
	u32 inner;	/* the process in its own pid namespace */
	u32 uid;
	char comm[COMM];
};

/* The end of a process. */
struct ended {
	struct mark mark;
	u64 born;
	u64 at;		/* nanoseconds of CLOCK_BOOTTIME */
	u64 ran;
	u32 inner;
	u32 status;	/* as wait(2) tells it */
	char comm[COMM];
};

struct pid_namespace;

/* A TCP connection that a process has open. */
struct connection {
	u64 gpid;
	u64 sent;	/* bytes that the other end has acknowledged */
	u64 received;
	u32 round_trip;	/* microseconds */
	u32 window;	/* segments that may be on their way */
	u32 retransmitted;
	u32 segments_out;
	u32 segments_in;
	u32 family;
	unsigned char local[16];
	unsigned char remote[16];
	__u16 local_port;
	__be16 remote_port;
	u32 unused;
};

/* A mapping of a process; as in agent/migrate/src/kernel/flags.rs. */
struct mapping {
	u64 start;
	u64 end;
	u64 flags;	/* VM_* of <linux/mm.h> */
};

struct vm_area_struct {
	unsigned long vm_start, vm_end, vm_flags;
} __attribute__((preserve_access_index));

struct upid {
	int nr;
	struct pid_namespace *ns;
} __attribute__((preserve_access_index));

struct pid {
	unsigned int level;
	struct upid numbers[1];
} __attribute__((preserve_access_index));

typedef struct {
	int counter;
} atomic_t;

struct signal_struct {
	atomic_t live;
	unsigned long long sum_sched_runtime;
	unsigned long min_flt, maj_flt, nvcsw, nivcsw;
} __attribute__((preserve_access_index));

struct sched_entity {
	u64 sum_exec_runtime;
} __attribute__((preserve_access_index));

struct sched_info {
	unsigned long long run_delay;
} __attribute__((preserve_access_index));

typedef struct {
	unsigned int val;
} kuid_t;

struct cred {
	kuid_t uid;
} __attribute__((preserve_access_index));

struct task_struct {
	int pid, tgid, exit_code;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct signal_struct *signal;
	const struct cred *real_cred;
	struct sched_entity se;
	struct sched_info sched_info;
	u64 start_boottime;
	unsigned long min_flt, maj_flt, nvcsw, nivcsw;
	char comm[COMM];
} __attribute__((preserve_access_index));

struct in6_addr {
	unsigned char in6_u[16];
} __attribute__((preserve_access_index));

struct sock_common {
	__be32 skc_daddr, skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num, skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type, sk_protocol;
} __attribute__((preserve_access_index));

struct socket {
	struct sock *sk;
} __attribute__((preserve_access_index));

struct tcp_sock {
	u64 bytes_acked, bytes_received;
	u32 srtt_us, snd_cwnd, total_retrans, segs_out, segs_in;
} __attribute__((preserve_access_index));

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} __attribute__((preserve_access_index));

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
} __attribute__((preserve_access_index));

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
} __attribute__((preserve_access_index));

/* GPID to pid; with its entries made before, which halves what a fork costs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, u64);
	__type(value, u32);
} gpids SEC(".maps");

/* Pid to the mark that it is to have; a PROCESS without a GPID gets a new one. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, u32);
	__type(value, struct mark);
} orders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct limit);
} limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct serials);
} serials SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} ends SEC(".maps");

char LICENSE[] SEC("license") = "GPL";

static __always_inline struct serials *the_serials(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&serials, &zero);
}

/* The next GPID, noted as that of this process; 0 if there is none. */
static __always_inline u64 new_gpid(u32 pid)
{
	struct serials *all = the_serials();
	struct limit *limit;
	u64 serial, gpid;
	u32 zero = 0;

	limit = bpf_map_lookup_elem(&limits, &zero);
	if (!all || !limit)
		return 0;
	/* One that is refused is not counted: the next block begins where this one ends. */
	if (all->next >= limit->end)
		goto none;
	serial = __sync_fetch_and_add(&all->next, 1);
	if (serial >= limit->end)
		goto none;
	gpid = limit->node | serial;
	if (bpf_map_update_elem(&gpids, &gpid, &pid, BPF_ANY))
		__sync_fetch_and_add(&all->unmarked, 1);
	return gpid;
none:
	__sync_fetch_and_add(&all->missed, 1);
	return 0;
}

static __always_inline unsigned int level_of(struct task_struct *task)
{
	return task->thread_pid->level;
}

/* The pid, and its namespace, at a level that is not deeper than the thread whose struct pid this is. */
static __always_inline struct upid *at_level(struct pid *pid, u32 level)
{
	struct upid *upid = __builtin_preserve_access_index(&pid->numbers[0]);
	u32 size = bpf_core_type_size(struct upid);

	return (void *)upid + level * size;
}

static __always_inline u32 pid_at(struct pid *pid, u32 level)
{
	struct upid *upid = at_level(pid, level);

	return BPF_CORE_READ(upid, nr);
}

/* The pid in the thread's own namespace. */
static __always_inline u32 inner_of(struct pid *pid)
{
	return pid_at(pid, pid->level);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	struct mark *from = bpf_task_storage_get(&marks, parent, 0, 0);
	struct mark *given, mark;
	struct serials *all;

	/* While programs of one release take the place of another's, both see a fork. */
	if (!from || bpf_task_storage_get(&marks, child, 0, 0))
		return 0;
	mark = *from;
	if (child->tgid == child->pid) {
		mark.parent = from->gpid;
		if (mark.kind == KEEPER && level_of(child) > level_of(parent)) {
			mark.kind = inner_of(child->thread_pid) == 1 ? INIT : VISITOR;
		} else if (mark.kind == INIT || mark.kind == PROCESS) {
			mark.kind = PROCESS;
			mark.gpid = new_gpid(pid_at(child->thread_pid, mark.level));
		}
	}
	given = bpf_task_storage_get(&marks, child, &mark, BPF_LOCAL_STORAGE_GET_F_CREATE);
	all = the_serials();
	if (!given && all)
		__sync_fetch_and_add(&all->unmarked, 1);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	struct mark *mark = bpf_task_storage_get(&marks, task, 0, 0);
	struct task_struct *leader;
	struct signal_struct *signal;
	struct serials *all;
	struct ended *ended;
	u64 gpid;

	if (!mark || mark->kind != PROCESS || !mark->gpid)
		return 0;
	signal = task->signal;
	if (signal->live.counter > 0)
		return 0;
	gpid = mark->gpid;
	/* Two threads may both be the last; one of them finds it here. */
	if (bpf_map_delete_elem(&gpids, &gpid))
		return 0;
	/* Nobody is woken for each: the agent looks several times a second. */
	ended = bpf_ringbuf_reserve(&ends, sizeof(*ended), 0);
	if (!ended) {
		all = the_serials();
		if (all)
			__sync_fetch_and_add(&all->lost, 1);
		return 0;
	}
	leader = task->group_leader;
	ended->mark = *mark;
	ended->born = leader->start_boottime;
	ended->at = bpf_ktime_get_boot_ns();
	ended->ran = signal->sum_sched_runtime + task->se.sum_exec_runtime;
	ended->inner = inner_of(leader->thread_pid);
	ended->status = leader->exit_code;
	bpf_probe_read_kernel(ended->comm, COMM, __builtin_preserve_access_index(&leader->comm));
	bpf_ringbuf_submit(ended, BPF_RB_NO_WAKEUP);
	return 0;
}

/* Carries out what is ordered of this thread of the process `pid`. */
static __always_inline struct mark *obey(struct task_struct *task, u32 pid, u32 level, struct mark *mark)
{
	struct mark *order = bpf_map_lookup_elem(&orders, &pid);
	struct mark wanted;
	u64 gpid;

	if (!order)
		return mark;
	wanted = *order;
	wanted.level = level;
	if (wanted.kind == PROCESS) {
		if (!wanted.gpid && mark && mark->gpid)
			return mark;
		if (task->tgid == task->pid) {
			if (!wanted.gpid)
				wanted.gpid = new_gpid(pid);
			else
				bpf_map_update_elem(&gpids, &wanted.gpid, &pid, BPF_ANY);
			/* Its other threads come after it in the list, and are to get the same. */
			order->gpid = wanted.gpid;
		}
	}
	if (!mark)
		return bpf_task_storage_get(&marks, task, &wanted, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (mark->gpid && mark->gpid != wanted.gpid) {
		gpid = mark->gpid;
		bpf_map_delete_elem(&gpids, &gpid);
	}
	*mark = wanted;
	return mark;
}

SEC("iter/task")
int list(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *reader = bpf_get_current_task_btf();
	u32 level = level_of(reader), pid;
	struct pid_namespace *ns;
	struct upid *upid;
	struct mark *mark;
	struct entry entry = {};

	/* Of others than the agent's own pid namespace, and those inside of it, nothing is to be told. */
	if (!task || level_of(task) < level)
		return 0;
	upid = at_level(BPF_CORE_READ(reader, thread_pid), level);
	ns = BPF_CORE_READ(upid, ns);
	upid = at_level(BPF_CORE_READ(task, thread_pid), level);
	if (BPF_CORE_READ(upid, ns) != ns)
		return 0;
	pid = pid_at(task->group_leader->thread_pid, level);
	/* Its process has ended, and waits for its parent. */
	if (task->signal->live.counter <= 0)
		return 0;
	mark = obey(task, pid, level, bpf_task_storage_get(&marks, task, 0, 0));
	if (!mark || mark->kind == KEEPER)
		return 0;
	entry.mark = *mark;
	entry.pid = pid;
	entry.tid = BPF_CORE_READ(upid, nr);
	entry.born = task->start_boottime;
	entry.ran = task->se.sum_exec_runtime;
	entry.waited = task->sched_info.run_delay;
	entry.minor = task->min_flt;
	entry.major = task->maj_flt;
	entry.voluntary = task->nvcsw;
	entry.involuntary = task->nivcsw;
	entry.inner = inner_of(task->group_leader->thread_pid);
	entry.uid = BPF_CORE_READ(task, real_cred, uid.val);
	if (task->tgid == task->pid) {
		struct signal_struct *signal = task->signal;

		entry.ran += signal->sum_sched_runtime;
		entry.minor += signal->min_flt;
		entry.major += signal->maj_flt;
		entry.voluntary += signal->nvcsw;
		entry.involuntary += signal->nivcsw;
	}
	bpf_probe_read_kernel(entry.comm, COMM, __builtin_preserve_access_index(&task->comm));
	bpf_seq_write(seq, &entry, sizeof(entry));
	return 0;
}

#define IPPROTO_TCP 6
#define TCP_LISTEN 10

SEC("iter/task_file")
int connections(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct seq_file *seq = ctx->meta->seq;
	struct connection connection = {};
	struct socket *socket;
	struct tcp_sock *tcp;
	struct mark *mark;
	struct sock *sock;
	__u16 family;

	if (!task || !file)
		return 0;
	mark = bpf_task_storage_get(&marks, task, 0, 0);
	if (!mark || mark->kind != PROCESS || !mark->gpid)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sock = socket->sk;
	if (!sock)
		return 0;
	family = BPF_CORE_READ(sock, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return 0;
	if (BPF_CORE_READ(sock, sk_protocol) != IPPROTO_TCP || BPF_CORE_READ(sock, __sk_common.skc_state) == TCP_LISTEN)
		return 0;
	tcp = (struct tcp_sock *)sock;
	connection.gpid = mark->gpid;
	connection.sent = BPF_CORE_READ(tcp, bytes_acked);
	connection.received = BPF_CORE_READ(tcp, bytes_received);
	/* The kernel keeps eight times the smoothed round trip. */
	connection.round_trip = BPF_CORE_READ(tcp, srtt_us) >> 3;
	connection.window = BPF_CORE_READ(tcp, snd_cwnd);
	connection.retransmitted = BPF_CORE_READ(tcp, total_retrans);
	connection.segments_out = BPF_CORE_READ(tcp, segs_out);
	connection.segments_in = BPF_CORE_READ(tcp, segs_in);
	connection.family = family;
	connection.local_port = BPF_CORE_READ(sock, __sk_common.skc_num);
	connection.remote_port = BPF_CORE_READ(sock, __sk_common.skc_dport);
	if (family == AF_INET) {
		BPF_CORE_READ_INTO((__be32 *)connection.local, sock, __sk_common.skc_rcv_saddr);
		BPF_CORE_READ_INTO((__be32 *)connection.remote, sock, __sk_common.skc_daddr);
	} else {
		BPF_CORE_READ_INTO(&connection.local, sock, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&connection.remote, sock, __sk_common.skc_v6_daddr);
	}
	bpf_seq_write(seq, &connection, sizeof(connection));
	return 0;
}

/* smaps tells the flags, too, but walks through all of the memory for it: 12 ms a GiB, while a process that moves stands still. */
SEC("iter/task_vma")
int mappings(struct bpf_iter__task_vma *ctx)
{
	struct vm_area_struct *vma = ctx->vma;
	struct mapping mapping;

	if (!ctx->task || !vma)
		return 0;
	mapping.start = vma->vm_start;
	mapping.end = vma->vm_end;
	mapping.flags = vma->vm_flags;
	bpf_seq_write(ctx->meta->seq, &mapping, sizeof(mapping));
	return 0;
}
