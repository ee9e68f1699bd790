// SPDX-License-Identifier: GPL-2.0
/*
 * The nodes and jobs of the grid, as the daemon published them last.
 *
 * A table is replaced as a whole. Readers hold none of it: they copy one record after the
 * other, each the first whose number is at least the one where they go on. Records ascend, so
 * whoever reads while tables change gets each record whole and at most once, and all that were
 * there the whole time.
 */
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "gridos.h"

union record {
	struct gridos_node node;
	struct gridos_job job;
};

struct rows {
	struct rcu_head rcu;
	u32 count;
	u8 bytes[] __aligned(8);
};

struct table {
	struct rows __rcu *rows;
	size_t record_size;
	u32 max;
	u64 (*number)(const void *record);
	/* Checks what the daemon gave, and makes it the kernel's. */
	bool (*take)(void *record);
	/* Makes it the reader's; false if it is not to be seen. */
	bool (*give)(void *record);
};

static DEFINE_MUTEX(publishing);

static bool is_string(const char *text, size_t size)
{
	return strnlen(text, size) < size;
}

/* === Nodes === */

static u64 node_number(const void *record)
{
	return ((const struct gridos_node *)record)->number;
}

static bool take_node(void *record)
{
	struct gridos_node *node = record;

	return node->number && node->number <= GRIDOS_NODE_MAX &&
	       node->state <= GRIDOS_NODE_REVOKED && is_string(node->name, sizeof(node->name));
}

static bool give_node(void *record)
{
	return true;
}

static struct table nodes = {
	.record_size = sizeof(struct gridos_node),
	.max = GRIDOS_NODES_MAX,
	.number = node_number,
	.take = take_node,
	.give = give_node,
};

/* === Jobs: in the kernel, their users are those of the first user namespace === */

static u64 job_number(const void *record)
{
	return ((const struct gridos_job *)record)->job;
}

static bool take_job(void *record)
{
	struct gridos_job *job = record;
	kuid_t uid = make_kuid(current_user_ns(), job->uid);
	u32 node = GRIDOS_GPID_NODE(job->job);

	if (!uid_valid(uid) || !node || node > GRIDOS_NODE_MAX || !GRIDOS_GPID_SERIAL(job->job) ||
	    job->job == LLONG_MAX || job->state > GRIDOS_JOB_DONE ||
	    !is_string(job->name, sizeof(job->name)))
		return false;
	job->uid = __kuid_val(uid);
	return true;
}

static bool give_job(void *record)
{
	struct gridos_job *job = record;
	kuid_t uid = KUIDT_INIT(job->uid);

	if (!uid_eq(uid, current_uid()) && !gridos_sees_all())
		return false;
	job->uid = from_kuid_munged(current_user_ns(), uid);
	return true;
}

static struct table jobs = {
	.record_size = sizeof(struct gridos_job),
	.max = GRIDOS_JOBS_MAX,
	.number = job_number,
	.take = take_job,
	.give = give_job,
};

static struct table *table_of(u32 number)
{
	switch (number) {
	case GRIDOS_OP_NODES:
		return &nodes;
	case GRIDOS_OP_JOBS:
		return &jobs;
	default:
		return NULL;
	}
}

/* === Reading === */

/* Copies the first record whose number is at least this one. */
static bool copy_from(const struct table *table, u64 from, void *record)
{
	const struct rows *rows;
	bool found = false;

	rcu_read_lock();
	rows = rcu_dereference(table->rows);
	if (rows) {
		u32 low = 0, high = rows->count;

		while (low < high) {
			u32 middle = low + (high - low) / 2;

			if (table->number(rows->bytes + middle * table->record_size) < from)
				low = middle + 1;
			else
				high = middle;
		}
		found = low < rows->count;
		if (found)
			memcpy(record, rows->bytes + low * table->record_size, table->record_size);
	}
	rcu_read_unlock();
	return found;
}

/* The same, of those records that the caller may see. */
static bool next_record(const struct table *table, u64 from, void *record)
{
	while (copy_from(table, from, record)) {
		from = table->number(record) + 1;
		if (table->give(record))
			return true;
		cond_resched();
	}
	return false;
}

bool gridos_next_node(u64 from, struct gridos_node *node)
{
	return next_record(&nodes, from, node);
}

bool gridos_next_job(u64 from, struct gridos_job *job)
{
	return next_record(&jobs, from, job);
}

int gridos_list(u32 number, struct gridos_list *args)
{
	const struct table *table = table_of(number);
	void __user *to = u64_to_user_ptr(args->records);
	size_t size = min_t(size_t, args->record_size, table->record_size);
	u64 from = args->from;
	union record record;
	u32 room = args->count;

	if (args->reserved || args->record_size < table->record_size)
		return -EINVAL;
	if (args->record_size > PAGE_SIZE)
		return -E2BIG;

	for (args->count = 0; args->count < room; args->count++) {
		if (!next_record(table, from, &record))
			break;
		from = table->number(&record) + 1;
		if (copy_to_user(to, &record, size) ||
		    clear_user(to + size, args->record_size - size))
			return -EFAULT;
		to += args->record_size;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

/* === Publishing === */

static int copy_rows(const struct table *table, const struct gridos_publish *args,
		     struct rows *rows)
{
	const void __user *from = u64_to_user_ptr(args->records);
	u64 last = 0;
	u32 i;

	for (i = 0; i < args->count; i++) {
		void *record = rows->bytes + i * table->record_size;
		int err;

		err = copy_struct_from_user(record, table->record_size, from, args->record_size);
		if (err)
			return err;
		if (!table->take(record) || table->number(record) <= last)
			return -EINVAL;
		last = table->number(record);
		from += args->record_size;
		cond_resched();
	}
	return 0;
}

static void replace_rows(struct table *table, struct rows *rows)
{
	struct rows *old;

	mutex_lock(&publishing);
	old = rcu_replace_pointer(table->rows, rows, lockdep_is_held(&publishing));
	mutex_unlock(&publishing);
	if (old)
		kvfree_rcu(old, rcu);
}

int gridos_publish(const struct gridos_publish *args)
{
	struct table *table = table_of(args->table);
	struct rows *rows;
	int err;

	if (!table || args->count > table->max || args->record_size < table->record_size)
		return -EINVAL;
	if (args->record_size > PAGE_SIZE)
		return -E2BIG;
	rows = kvmalloc(struct_size(rows, bytes, args->count * table->record_size),
			GFP_KERNEL_ACCOUNT);
	if (!rows)
		return -ENOMEM;
	rows->count = args->count;
	err = copy_rows(table, args, rows);
	if (err) {
		kvfree(rows);
		return err;
	}
	replace_rows(table, rows);
	return 0;
}

/* When nobody reads any more. */
void gridos_tables_exit(void)
{
	replace_rows(&nodes, NULL);
	replace_rows(&jobs, NULL);
}
