// SPDX-License-Identifier: GPL-2.0
/*
 * /proc/gridos: the same as the device tells, as text. Tables begin with a line of their
 * columns' names.
 *
 * The position in nodes and jobs is the number of the record, so that a table may be replaced
 * while it is read.
 */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#include "gridos.h"

static struct proc_dir_entry *dir;

static int version_show(struct seq_file *seq, void *v)
{
	seq_printf(seq, "uapi %u\nmodule %s\nnode %u\ndaemon %s\nprocesses %u\nlost %u\n",
		   GRIDOS_UAPI_VERSION, THIS_MODULE->version, gridos_node_number(),
		   gridos_has_daemon() ? "attached" : "none", gridos_process_count(),
		   gridos_lost_count());
	return 0;
}

static int self_show(struct seq_file *seq, void *v)
{
	struct gridos_identity identity;

	if (gridos_identify_current(&identity))
		seq_printf(seq, "gpid %u.%u\nnode %u\njob j%u.%u\ntask %u\n",
			   GRIDOS_GPID_NODE(identity.gpid), GRIDOS_GPID_SERIAL(identity.gpid),
			   gridos_node_number(), GRIDOS_GPID_NODE(identity.job),
			   GRIDOS_GPID_SERIAL(identity.job), identity.task);
	else
		seq_printf(seq, "gpid -\nnode %u\njob -\ntask -\n", gridos_node_number());
	return 0;
}

/* A name may have anything in it; a column has no white space, and is not empty. */
static void show_name(struct seq_file *seq, const char *name)
{
	seq_putc(seq, '\t');
	if (*name)
		seq_escape(seq, name, " \t\n\r\v\f\\\a\b\e");
	else
		seq_putc(seq, '-');
	seq_putc(seq, '\n');
}

/* === nodes === */

static void *nodes_from(struct seq_file *seq, loff_t *pos)
{
	struct gridos_node *node = seq->private;

	if (!gridos_next_node(*pos, node))
		return NULL;
	*pos = node->number;
	return node;
}

static void *nodes_start(struct seq_file *seq, loff_t *pos)
{
	return *pos ? nodes_from(seq, pos) : SEQ_START_TOKEN;
}

static void *nodes_next(struct seq_file *seq, void *v, loff_t *pos)
{
	++*pos;
	return nodes_from(seq, pos);
}

static void no_stop(struct seq_file *seq, void *v)
{
}

static int nodes_show(struct seq_file *seq, void *v)
{
	static const char * const states[] = { "up", "suspect", "down", "revoked" };
	const struct gridos_node *node = v;

	if (v == SEQ_START_TOKEN) {
		seq_puts(seq, "node\tstate\tcpus\tfree\tmemory\tfree\tname\n");
		return 0;
	}
	seq_printf(seq, "%u\t%s\t%u.%03u\t%u.%03u\t%llu\t%llu", node->number, states[node->state],
		   node->cpus / 1000, node->cpus % 1000, node->cpus_free / 1000,
		   node->cpus_free % 1000, node->memory, node->memory_free);
	show_name(seq, node->name);
	return 0;
}

static const struct seq_operations nodes_seq = {
	.start = nodes_start,
	.next = nodes_next,
	.stop = no_stop,
	.show = nodes_show,
};

/* === jobs === */

static void *jobs_from(struct seq_file *seq, loff_t *pos)
{
	struct gridos_job *job = seq->private;

	if (!gridos_next_job(*pos, job))
		return NULL;
	*pos = job->job;
	return job;
}

static void *jobs_start(struct seq_file *seq, loff_t *pos)
{
	return *pos ? jobs_from(seq, pos) : SEQ_START_TOKEN;
}

static void *jobs_next(struct seq_file *seq, void *v, loff_t *pos)
{
	++*pos;
	return jobs_from(seq, pos);
}

static int jobs_show(struct seq_file *seq, void *v)
{
	static const char * const states[] = { "waiting", "running", "done" };
	const struct gridos_job *job = v;

	if (v == SEQ_START_TOKEN) {
		seq_puts(seq, "job\tuid\tstate\ttasks\trunning\tdone\tfailed\tname\n");
		return 0;
	}
	seq_printf(seq, "j%u.%u\t%u\t%s\t%u\t%u\t%u\t%u", GRIDOS_GPID_NODE(job->job),
		   GRIDOS_GPID_SERIAL(job->job), job->uid, states[job->state], job->tasks,
		   job->running, job->done, job->failed);
	show_name(seq, job->name);
	return 0;
}

static const struct seq_operations jobs_seq = {
	.start = jobs_start,
	.next = jobs_next,
	.stop = no_stop,
	.show = jobs_show,
};

/* === Loading and unloading === */

int gridos_proc_init(void)
{
	dir = proc_mkdir("gridos", NULL);
	if (!dir)
		return -ENOMEM;
	if (!proc_create_single("version", 0444, dir, version_show) ||
	    !proc_create_single("self", 0444, dir, self_show) ||
	    !proc_create_seq_private("nodes", 0444, dir, &nodes_seq, sizeof(struct gridos_node),
				     NULL) ||
	    !proc_create_seq_private("jobs", 0444, dir, &jobs_seq, sizeof(struct gridos_job),
				     NULL) ||
	    !proc_create_seq("gpids", 0444, dir, &gridos_gpids_seq) ||
	    !proc_create_seq("io", 0444, dir, &gridos_io_seq))
		goto fail;
	/* Anybody may ask the daemon. */
	if (!proc_create("control", 0666, dir, &gridos_control_ops) ||
	    !proc_create("pipes", 0444, dir, &gridos_pipes_ops))
		goto fail;
	return 0;
fail:
	gridos_proc_exit();
	return -ENOMEM;
}

/* Waits for those who are in one of our functions, and closes what is open. */
void gridos_proc_exit(void)
{
	proc_remove(dir);
}
