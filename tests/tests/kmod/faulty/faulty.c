// SPDX-License-Identifier: GPL-2.0
/*
 * Does one thing that is wrong when it is loaded, for the tests of the kernel's own checks: a check that
 * does not find it would not find it in gridos.ko either.
 */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timer.h>

static char *fault = "none";
module_param(fault, charp, 0444);
MODULE_PARM_DESC(fault, "what to do wrong");

/* Told at run time, so that no compiler sees what comes. */
static int size = 100;
module_param(size, int, 0444);

static int none(void)
{
	void *bytes = kmalloc(size, GFP_KERNEL);

	kfree(bytes);
	return bytes ? 0 : -ENOMEM;
}

static int use_after_free(void)
{
	char *bytes = kmalloc(size, GFP_KERNEL);

	if (!bytes)
		return -ENOMEM;
	OPTIMIZER_HIDE_VAR(bytes);
	kfree(bytes);
	WRITE_ONCE(bytes[size / 2], 1);
	return 0;
}

static int out_of_bounds(void)
{
	char *bytes = kmalloc(size, GFP_KERNEL);

	if (!bytes)
		return -ENOMEM;
	OPTIMIZER_HIDE_VAR(bytes);
	WRITE_ONCE(bytes[size], 1);
	kfree(bytes);
	return 0;
}

/* Several: what is left on a stack may still seem to know the last one. */
static int leak(void)
{
	int i;

	for (i = 0; i < 20; i++) {
		void *bytes = kmalloc(size, GFP_KERNEL);

		OPTIMIZER_HIDE_VAR(bytes);
	}
	return 0;
}

static int atomic_sleep(void)
{
	static DEFINE_SPINLOCK(lock);
	void *bytes;

	spin_lock(&lock);
	/* It sleeps where memory is short; the check is not for whether it does, but for whether it may. */
	bytes = kmalloc(size, GFP_KERNEL);
	spin_unlock(&lock);
	kfree(bytes);
	return 0;
}

static void on_time(struct timer_list *timer)
{
}

static int timer_freed(void)
{
	struct timer_list *timer = kmalloc(sizeof(*timer), GFP_KERNEL);

	if (!timer)
		return -ENOMEM;
	timer_setup(timer, on_time, 0);
	mod_timer(timer, jiffies + 1000 * HZ);
	kfree(timer);
	return 0;
}

static int shift(void)
{
	return (1 << (size + 27)) == 5;
}

static int unprotected(void)
{
	static int __rcu *pointer;

	return rcu_dereference(pointer) != NULL;
}

static int lock_inversion(void)
{
	static DEFINE_MUTEX(first);
	static DEFINE_MUTEX(second);

	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);

	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
	return 0;
}

static const struct {
	const char *name;
	int (*commit)(void);
} faults[] = {
	{ "none", none },
	{ "use_after_free", use_after_free },
	{ "out_of_bounds", out_of_bounds },
	{ "leak", leak },
	{ "atomic_sleep", atomic_sleep },
	{ "timer_freed", timer_freed },
	{ "shift", shift },
	{ "unprotected", unprotected },
	{ "lock_inversion", lock_inversion },
};

static int __init faulty_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(faults); i++) {
		if (!strcmp(fault, faults[i].name))
			return faults[i].commit();
	}
	return -EINVAL;
}

static void __exit faulty_exit(void)
{
}

module_init(faulty_init);
module_exit(faulty_exit);

MODULE_DESCRIPTION("Something wrong, for the kernel's checks to find");
MODULE_LICENSE("GPL");
