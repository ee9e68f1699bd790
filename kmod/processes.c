// SPDX-License-Identifier: GPL-2.0
/*
 * GPIDs of the processes that belong to jobs.
 *
 * A process is known by two keys: its GPID, and the struct pid of its thread group, which is
 * held, so that no other process can get it meanwhile. What is known of it never changes;
 * SET_GPID puts a new entry in the place of the old one. Lookups need RCU alone. Changes take
 * one lock, which forks and exits of other processes never take.
 *
 * Registration and the end of a process may come at once. The kernel counts signal->live down
 * before it calls gridos_exited(), and gridos_insert() reads it after the entry can be found:
 * at least one of the two sees the other.
 */
#include <linux/bug.h>
#include <linux/jhash.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/pid_namespace.h>
#include <linux/rculist.h>
#include <linux/rhashtable.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "gridos.h"

static unsigned int max_processes = 65536;
module_param(max_processes, uint, 0444);
MODULE_PARM_DESC(max_processes, "the most processes that can have a GPID");

struct gridos_process {
	struct rhash_head by_gpid;
	struct rhash_head by_pid;
	/* In the order of registration, for whoever lists them. */
	struct list_head all;
	u64 order;
	struct pid *pid;
	struct gridos_identity identity;
	struct rcu_head rcu;
};

static const struct rhashtable_params by_gpid_params = {
	.head_offset = offsetof(struct gridos_process, by_gpid),
	.key_offset = offsetof(struct gridos_process, identity.gpid),
	.key_len = sizeof(u64),
	.automatic_shrinking = true,
};

static const struct rhashtable_params by_pid_params = {
	.head_offset = offsetof(struct gridos_process, by_pid),
	.key_offset = offsetof(struct gridos_process, pid),
	.key_len = sizeof(struct pid *),
	.automatic_shrinking = true,
};

/* Serials that may be handed out: next to end - 1 of this node. next never goes back. */
struct serials {
	u32 node;
	u32 next;
	u32 end;
	/* So few are left that the daemon is asked for more, once. */
	u32 low;
	bool asked;
};

static DEFINE_SPINLOCK(lock);
static struct rhashtable by_gpid;
static struct rhashtable by_pid;
static LIST_HEAD(all);
static u64 last_order;
static unsigned int count;
static struct serials serials = { .next = 1 };
/* Children that got no GPID: no memory, no serial, or too many. */
static atomic_t lost = ATOMIC_INIT(0);
static struct kmem_cache *cache;

static void free_process(struct rcu_head *rcu)
{
	struct gridos_process *process = container_of(rcu, struct gridos_process, rcu);

	put_pid(process->pid);
	kmem_cache_free(cache, process);
}

static struct gridos_process *new_process(struct pid *tgid, u64 job, u32 task, gfp_t gfp)
{
	struct gridos_process *process = kmem_cache_alloc(cache, gfp);

	if (!process)
		return NULL;
	process->pid = get_pid(tgid);
	process->identity = (struct gridos_identity){ .job = job, .task = task };
	return process;
}

/* Under RCU or the lock. */
static struct gridos_process *find_pid_entry(struct pid *tgid)
{
	return rhashtable_lookup(&by_pid, &tgid, by_pid_params);
}

static struct gridos_process *find_gpid_entry(u64 gpid)
{
	return rhashtable_lookup(&by_gpid, &gpid, by_gpid_params);
}

static bool gpid_in_use(u64 gpid)
{
	bool used;

	rcu_read_lock();
	used = find_gpid_entry(gpid);
	rcu_read_unlock();
	return used;
}

/* Takes the next serial of the range. A restored process may have brought one of them back. */
static u64 take_serial(void)
{
	lockdep_assert_held(&lock);
	while (serials.next < serials.end) {
		u64 gpid = GRIDOS_GPID(serials.node, serials.next++);

		if (!gpid_in_use(gpid))
			return gpid;
	}
	return 0;
}

/* Whether the daemon has to be told that few serials are left; true once a range. */
static bool running_low(void)
{
	lockdep_assert_held(&lock);
	if (serials.asked || !serials.node || serials.end - serials.next > serials.low)
		return false;
	serials.asked = true;
	return true;
}

/* To the end of the list, for whoever reads it from the beginning. */
static void append(struct gridos_process *process)
{
	process->order = ++last_order;
	list_add_tail_rcu(&process->all, &all);
}

static int insert(struct gridos_process *process)
{
	int err;

	lockdep_assert_held(&lock);
	if (count >= max_processes)
		return -ENFILE;
	err = rhashtable_lookup_insert_fast(&by_pid, &process->by_pid, by_pid_params);
	if (err)
		return err;
	err = rhashtable_lookup_insert_fast(&by_gpid, &process->by_gpid, by_gpid_params);
	if (err) {
		rhashtable_remove_fast(&by_pid, &process->by_pid, by_pid_params);
		return err;
	}
	append(process);
	count++;
	return 0;
}

static void forget(struct gridos_process *process)
{
	lockdep_assert_held(&lock);
	rhashtable_remove_fast(&by_pid, &process->by_pid, by_pid_params);
	rhashtable_remove_fast(&by_gpid, &process->by_gpid, by_gpid_params);
	list_del_rcu(&process->all);
	count--;
	call_rcu(&process->rcu, free_process);
}

/* Puts one entry in the place of another of the same process, which is found all the while. */
static int replace(struct gridos_process *old, struct gridos_process *process)
{
	int err;

	lockdep_assert_held(&lock);
	err = rhashtable_lookup_insert_fast(&by_gpid, &process->by_gpid, by_gpid_params);
	if (err)
		return err;
	err = rhashtable_replace_fast(&by_pid, &old->by_pid, &process->by_pid, by_pid_params);
	if (WARN_ON_ONCE(err)) {
		rhashtable_remove_fast(&by_gpid, &process->by_gpid, by_gpid_params);
		return err;
	}
	rhashtable_remove_fast(&by_gpid, &old->by_gpid, by_gpid_params);
	list_del_rcu(&old->all);
	append(process);
	call_rcu(&old->rcu, free_process);
	return 0;
}

static void forget_pid(struct pid *tgid)
{
	struct gridos_process *process;

	rcu_read_lock();
	process = find_pid_entry(tgid);
	if (process) {
		spin_lock(&lock);
		/* It may have got another entry, or have been forgotten. */
		process = find_pid_entry(tgid);
		if (process)
			forget(process);
		spin_unlock(&lock);
	}
	rcu_read_unlock();
}

/* === The range === */

int gridos_range(struct gridos_range *range)
{
	int err = 0;

	if (!range->node || range->node > GRIDOS_NODE_MAX || !range->next)
		return -EINVAL;
	spin_lock(&lock);
	/* Also where the node's number changes: it may change back. */
	range->next = max(range->next, serials.next);
	if (range->next < range->end) {
		WRITE_ONCE(serials.node, range->node);
		serials.next = range->next;
		serials.end = range->end;
		serials.low = (range->end - range->next) / 4;
		serials.asked = false;
	} else {
		err = -ERANGE;
	}
	spin_unlock(&lock);
	return err;
}

u32 gridos_node_number(void)
{
	return READ_ONCE(serials.node);
}

/* === What the daemon asks for === */

/*
 * The task of a process id in the caller's namespace, and the struct pid of its thread group;
 * both are held.
 */
static struct task_struct *get_process(pid_t nr, struct pid **tgid)
{
	struct pid *pid = find_get_pid(nr);
	struct task_struct *task = get_pid_task(pid, PIDTYPE_PID);

	put_pid(pid);
	if (!task)
		return ERR_PTR(-ESRCH);
	if (task->flags & PF_KTHREAD) {
		put_task_struct(task);
		return ERR_PTR(-EINVAL);
	}
	*tgid = get_task_pid(task, PIDTYPE_TGID);
	if (!*tgid) {
		put_task_struct(task);
		return ERR_PTR(-ESRCH);
	}
	return task;
}

/* Gives the process this GPID, or the next one if it is 0. */
static int give(struct gridos_register *args, u64 gpid)
{
	struct task_struct *task;
	struct gridos_process *process, *old;
	struct pid *tgid;
	bool low;
	int err;

	if (args->reserved)
		return -EINVAL;
	task = get_process(args->pid, &tgid);
	if (IS_ERR(task))
		return PTR_ERR(task);
	process = new_process(tgid, args->job, args->task, GFP_KERNEL_ACCOUNT);
	if (!process) {
		err = -ENOMEM;
		goto out;
	}

	rcu_read_lock();
	spin_lock(&lock);
	old = find_pid_entry(tgid);
	if (!serials.node) {
		err = -ENXIO;
	} else if (!gpid && old) {
		err = -EEXIST;
	} else if (gpid && GRIDOS_GPID_NODE(gpid) == serials.node &&
		   GRIDOS_GPID_SERIAL(gpid) >= serials.next) {
		err = -EINVAL;
	} else if (gpid && old && old->identity.gpid == gpid) {
		err = -EEXIST;
	} else {
		process->identity.gpid = gpid ?: take_serial();
		if (!process->identity.gpid)
			err = -ENOSPC;
		else
			err = old ? replace(old, process) : insert(process);
	}
	if (!err)
		args->gpid = process->identity.gpid;
	low = running_low();
	spin_unlock(&lock);
	rcu_read_unlock();
	if (low)
		gridos_serials_low();

	if (err) {
		/* A reader may have seen it before something failed. */
		call_rcu(&process->rcu, free_process);
		goto out;
	}
	/* Pairs with the kernel's atomic_dec_and_test() of live: see the top of this file. */
	smp_mb();
	if (!atomic_read(&task->signal->live)) {
		forget_pid(tgid);
		err = -ESRCH;
	}
out:
	put_pid(tgid);
	put_task_struct(task);
	return err;
}

int gridos_register(struct gridos_register *args)
{
	return give(args, 0);
}

int gridos_set_gpid(const struct gridos_register *args)
{
	struct gridos_register copy = *args;
	u32 node = GRIDOS_GPID_NODE(args->gpid);

	if (!node || node > GRIDOS_NODE_MAX || !GRIDOS_GPID_SERIAL(args->gpid))
		return -EINVAL;
	return give(&copy, args->gpid);
}

int gridos_enter(struct gridos_register *args)
{
	int err;

	if (args->pid || args->gpid)
		return -EINVAL;
	args->pid = task_tgid_vnr(current);
	err = give(args, 0);
	args->pid = 0;
	return err;
}

/* === What the scheduler tells, in the parent and in the thread that ends; none may sleep === */

void gridos_forked(struct task_struct *parent, struct task_struct *child)
{
	struct gridos_identity identity;
	struct gridos_process *process;
	bool low;
	int err;

	if (!thread_group_leader(child) || !gridos_identify(task_tgid(parent), &identity))
		return;
	process = new_process(task_tgid(child), identity.job, identity.task,
			      GFP_ATOMIC | __GFP_NOWARN);
	if (!process) {
		atomic_inc(&lost);
		return;
	}
	spin_lock(&lock);
	process->identity.gpid = take_serial();
	err = process->identity.gpid ? insert(process) : -ENOSPC;
	low = running_low();
	spin_unlock(&lock);
	if (low)
		gridos_serials_low();
	if (err) {
		/* The daemon may have been faster. */
		if (err != -EEXIST)
			atomic_inc(&lost);
		call_rcu(&process->rcu, free_process);
	}
}

void gridos_exited(struct task_struct *task)
{
	if (!atomic_read(&task->signal->live))
		forget_pid(task_tgid(task));
}

/* === Lookups === */

bool gridos_identify(struct pid *tgid, struct gridos_identity *identity)
{
	struct gridos_process *process;

	rcu_read_lock();
	process = find_pid_entry(tgid);
	if (process)
		*identity = process->identity;
	rcu_read_unlock();
	return process;
}

bool gridos_identify_current(struct gridos_identity *identity)
{
	return gridos_identify(task_tgid(current), identity);
}

/* Whether the caller may know of a process; under RCU. */
static bool visible(struct pid *tgid)
{
	struct task_struct *task = pid_task(tgid, PIDTYPE_TGID);

	return task && (uid_eq(task_uid(task), current_uid()) || gridos_sees_all());
}

int gridos_lookup(struct gridos_lookup *args)
{
	struct gridos_process *process = NULL;
	struct task_struct *task;
	int err = -ESRCH;

	if (args->reserved)
		return -EINVAL;
	rcu_read_lock();
	switch (args->flags) {
	case GRIDOS_LOOKUP_PID:
		task = pid_task(find_vpid(args->pid), PIDTYPE_PID);
		if (task && task_tgid(task))
			process = find_pid_entry(task_tgid(task));
		break;
	case GRIDOS_LOOKUP_GPID:
		process = find_gpid_entry(args->gpid);
		break;
	default:
		err = -EINVAL;
	}
	if (process && pid_vnr(process->pid) && visible(process->pid)) {
		args->gpid = process->identity.gpid;
		args->pid = pid_vnr(process->pid);
		err = 0;
	}
	rcu_read_unlock();
	return err;
}

unsigned int gridos_process_count(void)
{
	return READ_ONCE(count);
}

unsigned int gridos_lost_count(void)
{
	return atomic_read(&lost);
}

/* === /proc/gridos/gpids: positions are orders: nobody is listed twice or left out === */

static void *gpids_start(struct seq_file *seq, loff_t *pos) __acquires(RCU)
{
	struct gridos_process *process;

	rcu_read_lock();
	if (!*pos)
		return SEQ_START_TOKEN;
	list_for_each_entry_rcu(process, &all, all) {
		if (process->order >= *pos) {
			*pos = process->order;
			return process;
		}
	}
	return NULL;
}

static void *gpids_next(struct seq_file *seq, void *v, loff_t *pos)
{
	struct list_head *at = &all;
	struct gridos_process *process;

	if (v != SEQ_START_TOKEN)
		at = &((struct gridos_process *)v)->all;
	process = list_next_or_null_rcu(&all, at, struct gridos_process, all);
	*pos = process ? process->order : *pos + 1;
	return process;
}

static void gpids_stop(struct seq_file *seq, void *v) __releases(RCU)
{
	rcu_read_unlock();
}

static int gpids_show(struct seq_file *seq, void *v)
{
	struct gridos_process *process = v;
	const struct gridos_identity *identity;

	if (v == SEQ_START_TOKEN) {
		seq_puts(seq, "gpid\tpid\tjob\ttask\n");
		return 0;
	}
	if (!pid_vnr(process->pid) || !visible(process->pid))
		return SEQ_SKIP;
	identity = &process->identity;
	seq_printf(seq, "%u.%u\t%d\tj%u.%u\t%u\n", GRIDOS_GPID_NODE(identity->gpid),
		   GRIDOS_GPID_SERIAL(identity->gpid), pid_vnr(process->pid),
		   GRIDOS_GPID_NODE(identity->job), GRIDOS_GPID_SERIAL(identity->job),
		   identity->task);
	return 0;
}

const struct seq_operations gridos_gpids_seq = {
	.start = gpids_start,
	.next = gpids_next,
	.stop = gpids_stop,
	.show = gpids_show,
};

/* === Loading and unloading === */

int gridos_processes_init(void)
{
	int err;

	cache = KMEM_CACHE(gridos_process, 0);
	if (!cache)
		return -ENOMEM;
	err = rhashtable_init(&by_gpid, &by_gpid_params);
	if (err)
		goto no_gpids;
	err = rhashtable_init(&by_pid, &by_pid_params);
	if (err)
		goto no_pids;
	return 0;
no_pids:
	rhashtable_destroy(&by_gpid);
no_gpids:
	kmem_cache_destroy(cache);
	return err;
}

/* When nobody calls any more. */
void gridos_processes_exit(void)
{
	struct gridos_process *process, *next;

	spin_lock(&lock);
	list_for_each_entry_safe(process, next, &all, all)
		forget(process);
	spin_unlock(&lock);
	rcu_barrier();
	rhashtable_destroy(&by_pid);
	rhashtable_destroy(&by_gpid);
	kmem_cache_destroy(cache);
}
