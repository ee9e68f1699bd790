// SPDX-License-Identifier: GPL-2.0
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
/*
 * Follows processes by the scheduler's tracepoints. They are not exported, and so are found by
 * their names.
 *
 * The kernel calls a probe with preemption off, before a child has run its first instruction,
 * and before a parent can reap the dead.
 */
#include <linux/module.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <trace/events/sched.h>

#include "gridos.h"

static void on_fork(void *data, struct task_struct *parent, struct task_struct *child)
{
	gridos_forked(parent, child);
}

static void __maybe_unused on_exit(void *data, struct task_struct *task)
{
	gridos_exited(task);
}

/* Newer kernels tell besides whether it is the last thread. */
static void __maybe_unused on_exit_with_group_dead(void *data, struct task_struct *task,
						   bool group_dead)
{
	gridos_exited(task);
}

#define TELLS_GROUP_DEAD \
	__same_type(trace_sched_process_exit, void (struct task_struct *, bool))

struct probe {
	const char *name;
	void *function;
	struct tracepoint *tracepoint;
};

static struct probe probes[] = {
	/* Exits first: whoever is inherited must be forgotten, too. */
	{
		.name = "sched_process_exit",
		.function = __builtin_choose_expr(TELLS_GROUP_DEAD, (void *)on_exit_with_group_dead,
						  (void *)on_exit),
	},
	{
		.name = "sched_process_fork",
		.function = on_fork,
	},
};

static void find_tracepoint(struct tracepoint *tracepoint, void *unused)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(probes); i++) {
		if (!strcmp(tracepoint->name, probes[i].name))
			probes[i].tracepoint = tracepoint;
	}
}

static void unregister(int n)
{
	while (n--)
		tracepoint_probe_unregister(probes[n].tracepoint, probes[n].function, NULL);
	tracepoint_synchronize_unregister();
}

int gridos_follow_init(void)
{
	int i, err;

	BUILD_BUG_ON(!TELLS_GROUP_DEAD &&
		     !__same_type(trace_sched_process_exit, void (struct task_struct *)));
	BUILD_BUG_ON(!__same_type(trace_sched_process_fork,
				  void (struct task_struct *, struct task_struct *)));

	for_each_kernel_tracepoint(find_tracepoint, NULL);
	for (i = 0; i < ARRAY_SIZE(probes); i++) {
		if (!probes[i].tracepoint) {
			pr_err("this kernel has no tracepoint %s\n", probes[i].name);
			err = -ENOENT;
			goto fail;
		}
		err = tracepoint_probe_register(probes[i].tracepoint, probes[i].function, NULL);
		if (err)
			goto fail;
	}
	return 0;
fail:
	unregister(i);
	return err;
}

void gridos_follow_exit(void)
{
	unregister(ARRAY_SIZE(probes));
}
