// SPDX-License-Identifier: GPL-2.0
/*
 * The grid's part of the kernel: the GPIDs of all processes of jobs, two doors to what the grid
 * knows, /dev/gridos and /proc/gridos, and bytes between sockets and files. It decides nothing.
 * What needs the grid is asked of its daemon, gridosd.
 */
#include <linux/capability.h>
#include <linux/module.h>

#include "gridos.h"

#ifdef CONFIG_PREEMPT_RT
#error "Forks are followed with preemption off, where a real-time kernel allocates no memory."
#endif

bool gridos_sees_all(void)
{
	return ns_capable_noaudit(&init_user_ns, CAP_SYS_PTRACE) ||
	       ns_capable_noaudit(&init_user_ns, CAP_SYS_ADMIN);
}

static int __init gridos_init(void)
{
	int err;

	err = gridos_processes_init();
	if (err)
		return err;
	err = gridos_follow_init();
	if (err)
		goto no_follow;
	err = gridos_io_init();
	if (err)
		goto no_io;
	err = gridos_proc_init();
	if (err)
		goto no_proc;
	/* Last, as who has opened it must find the module loaded. */
	err = gridos_device_init();
	if (err)
		goto no_device;
	return 0;
no_device:
	gridos_proc_exit();
no_proc:
	gridos_io_exit();
no_io:
	gridos_follow_exit();
no_follow:
	gridos_processes_exit();
	return err;
}

/* Nothing that keeps the module loaded is open: there is neither daemon nor call. */
static void __exit gridos_exit(void)
{
	gridos_device_exit();
	gridos_proc_exit();
	gridos_io_exit();
	gridos_follow_exit();
	gridos_tables_exit();
	gridos_processes_exit();
}

module_init(gridos_init);
module_exit(gridos_exit);

MODULE_DESCRIPTION("GridOS: global process ids, /dev/gridos, /proc/gridos and managed sockets");
MODULE_AUTHOR("The GridOS team");
MODULE_VERSION("0.1.0");
MODULE_LICENSE("GPL");
