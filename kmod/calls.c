// SPDX-License-Identifier: GPL-2.0
/*
 * Calls: what only the daemon can answer.
 *
 *	          ask              read                write
 *	caller ---------> QUEUED ---------> SENT ---------------> DONE -> caller
 *	                    | ^              | |
 *	                    | '--------------' | the daemon went away (and if the
 *	     signal, time   |                  | caller does not wait: DONE, EAGAIN)
 *	                    v                  v signal, time
 *	                  GONE               GONE -- the daemon reads: cancelled
 *
 * A call is held by its caller, and by the queue or table that it is in. All that changes is
 * under one lock, except that bytes are copied to and from the daemon without it. A call counts
 * against its user until nothing holds it, so that cancellations which no daemon reads are
 * bounded as well.
 */
#include <linux/completion.h>
#include <linux/hashtable.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pid_namespace.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include "gridos.h"

static unsigned int max_calls = 1024;
module_param(max_calls, uint, 0644);
MODULE_PARM_DESC(max_calls, "the most calls under way, of all users");

static unsigned int max_user_calls = 64;
module_param(max_user_calls, uint, 0644);
MODULE_PARM_DESC(max_user_calls, "the most calls under way of one user");

static unsigned int timeout_ms = 30000;
module_param(timeout_ms, uint, 0644);
MODULE_PARM_DESC(timeout_ms, "how long a call may take if its caller does not say, in milliseconds");

struct caller {
	struct hlist_node node;
	kuid_t uid;
	unsigned int calls;
};

enum state { QUEUED, SENT, DONE, GONE };

struct call {
	refcount_t held;
	enum state state;
	/* In queued or cancelled. */
	struct list_head list;
	/* In sent. */
	struct hlist_node node;
	struct completion done;
	struct caller *caller;
	bool nowait;
	bool again;

	u64 id;
	u32 op;
	u32 room;
	u64 gpid;
	struct pid *pid;
	kuid_t uid;
	kgid_t gid;
	void *in;
	u32 in_len;

	struct gridos_reply reply;
};

static DEFINE_SPINLOCK(lock);
static LIST_HEAD(queued);
static LIST_HEAD(cancelled);
static DEFINE_HASHTABLE(sent, 8);
static DEFINE_HASHTABLE(callers, 6);
static unsigned int calls;
static u64 last_id;
/* The daemon, which is never looked into. */
static struct file *daemon;
static bool serials_low;
static DECLARE_WAIT_QUEUE_HEAD(readers);

/* === Lives of calls === */

static struct caller *find_caller(kuid_t uid)
{
	struct caller *caller;

	hash_for_each_possible(callers, caller, node, __kuid_val(uid)) {
		if (uid_eq(caller->uid, uid))
			return caller;
	}
	return NULL;
}

/* Counts a call of this user, for whom a new entry is taken if there is none. */
static int charge(struct call *call, struct caller **fresh)
{
	struct caller *caller = find_caller(call->uid);

	lockdep_assert_held(&lock);
	if (calls >= READ_ONCE(max_calls))
		return -EBUSY;
	if ((caller ? caller->calls : 0) >= READ_ONCE(max_user_calls))
		return -EDQUOT;
	if (!caller) {
		caller = *fresh;
		*fresh = NULL;
		caller->uid = call->uid;
		caller->calls = 0;
		hash_add(callers, &caller->node, __kuid_val(caller->uid));
	}
	caller->calls++;
	calls++;
	call->caller = caller;
	return 0;
}

static void free_call(struct call *call)
{
	struct caller *unused = NULL;

	if (call->caller) {
		spin_lock(&lock);
		calls--;
		if (!--call->caller->calls) {
			unused = call->caller;
			hash_del(&unused->node);
		}
		spin_unlock(&lock);
	}
	kfree(unused);
	put_pid(call->pid);
	kvfree(call->in);
	kvfree(call->reply.bytes);
	kfree(call);
}

/* Not under the lock. */
static void put_call(struct call *call)
{
	if (refcount_dec_and_test(&call->held))
		free_call(call);
}

static struct call *new_call(u32 op, void *in, u32 in_len, u32 room, bool nowait)
{
	struct call *call = kzalloc(sizeof(*call), GFP_KERNEL_ACCOUNT);
	struct gridos_identity identity;

	if (!call) {
		kvfree(in);
		return NULL;
	}
	refcount_set(&call->held, 1);
	INIT_LIST_HEAD(&call->list);
	INIT_HLIST_NODE(&call->node);
	init_completion(&call->done);
	call->nowait = nowait;
	call->op = op;
	call->room = room;
	if (gridos_identify_current(&identity))
		call->gpid = identity.gpid;
	call->pid = get_pid(task_tgid(current));
	call->uid = current_uid();
	call->gid = current_gid();
	call->in = in;
	call->in_len = in_len;
	return call;
}

/* === The caller === */

/* Queues a call, if there is somebody to answer it or its caller waits for that. */
static int queue(struct call *call)
{
	struct caller *fresh = kzalloc(sizeof(*fresh), GFP_KERNEL_ACCOUNT);
	int err;

	if (!fresh)
		return -ENOMEM;
	spin_lock(&lock);
	if (!daemon && call->nowait)
		err = -EAGAIN;
	else
		err = charge(call, &fresh);
	if (!err) {
		call->id = ++last_id;
		call->state = QUEUED;
		refcount_inc(&call->held);
		list_add_tail(&call->list, &queued);
	}
	spin_unlock(&lock);
	kfree(fresh);
	if (!err)
		wake_up_interruptible(&readers);
	return err;
}

/* How long one may wait that was given this time, in jiffies. */
long gridos_patience(u32 ms)
{
	return msecs_to_jiffies(ms ?: READ_ONCE(timeout_ms));
}

/* Takes the answer; or has the daemon know that nobody waits for one. */
static bool settle(struct call *call, struct gridos_reply *reply)
{
	bool cancels = false, drops = false, answered;

	spin_lock(&lock);
	answered = call->state == DONE;
	switch (call->state) {
	case DONE:
		*reply = call->reply;
		call->reply.bytes = NULL;
		break;
	case QUEUED:
		list_del_init(&call->list);
		call->state = GONE;
		drops = true;
		break;
	case SENT:
		hash_del(&call->node);
		list_add_tail(&call->list, &cancelled);
		call->state = GONE;
		cancels = true;
		break;
	case GONE:
		break;
	}
	spin_unlock(&lock);
	if (cancels)
		wake_up_interruptible(&readers);
	if (drops)
		put_call(call);
	return answered;
}

/**
 * gridos_ask - has the daemon answer
 * @op: what is asked for
 * @in: bytes for the daemon; freed by kvfree(), whatever happens
 * @in_len: how many
 * @room: the most bytes of an answer
 * @flags: GRIDOS_CALL_*
 * @ms: how long it may take; 0 for the default
 * @reply: what the daemon said, if the return value is 0
 *
 * Return: 0 if the daemon answered, even if with an error.
 */
int gridos_ask(u32 op, void *in, u32 in_len, u32 room, u32 flags, u32 ms,
	       struct gridos_reply *reply)
{
	struct call *call = new_call(op, in, in_len, room, flags & GRIDOS_CALL_NOWAIT);
	long left;
	int err;

	if (!call)
		return -ENOMEM;
	err = queue(call);
	if (!err) {
		left = wait_for_completion_interruptible_timeout(&call->done, gridos_patience(ms));
		if (!settle(call, reply))
			err = left < 0 ? -EINTR : -ETIMEDOUT;
	}
	put_call(call);
	return err;
}

/* === The daemon === */

int gridos_attach(struct file *file)
{
	int err = 0;

	spin_lock(&lock);
	if (daemon)
		err = -EBUSY;
	else
		daemon = file;
	spin_unlock(&lock);
	return err;
}

bool gridos_is_daemon(struct file *file)
{
	return READ_ONCE(daemon) == file;
}

bool gridos_has_daemon(void)
{
	return READ_ONCE(daemon);
}

static void finish(struct call *call, int error)
{
	lockdep_assert_held(&lock);
	call->state = DONE;
	call->reply.error = error;
	complete(&call->done);
}

/*
 * Back to the queue, which ascends: the next daemon is asked in the order in which this one
 * was.
 */
static void requeue(struct call *call)
{
	struct list_head *before = queued.next;

	lockdep_assert_held(&lock);
	while (before != &queued && list_entry(before, struct call, list)->id < call->id)
		before = before->next;
	list_add_tail(&call->list, before);
	call->state = QUEUED;
}

/* The file is closed. If it was the daemon's, nobody answers what it was asked. */
void gridos_detach(struct file *file)
{
	struct call *call, *next_call;
	struct hlist_node *next;
	LIST_HEAD(let_go);
	int bucket;

	spin_lock(&lock);
	if (daemon != file) {
		spin_unlock(&lock);
		return;
	}
	daemon = NULL;
	serials_low = false;
	list_splice_init(&cancelled, &let_go);
	hash_for_each_safe(sent, bucket, next, call, node) {
		hash_del(&call->node);
		call->again = true;
		requeue(call);
	}
	list_for_each_entry_safe(call, next_call, &queued, list) {
		if (call->nowait) {
			finish(call, -EAGAIN);
			list_move_tail(&call->list, &let_go);
		}
	}
	spin_unlock(&lock);

	list_for_each_entry_safe(call, next_call, &let_go, list) {
		list_del_init(&call->list);
		put_call(call);
	}
}

/* Three quarters of a range are used. From a fork: it does not sleep. */
void gridos_serials_low(void)
{
	spin_lock(&lock);
	serials_low = daemon;
	spin_unlock(&lock);
	wake_up_interruptible(&readers);
}

static bool something_to_read(void)
{
	return serials_low || !list_empty(&cancelled) || !list_empty(&queued);
}

/*
 * What is to be read next, if it fits: a call that becomes SENT, one that was cancelled, or
 * neither.
 */
static int take_request(struct file *file, size_t room, struct gridos_request *request,
			struct call **sending, struct call **dropped)
{
	struct call *call;
	int err = 0;

	spin_lock(&lock);
	if (daemon != file) {
		err = -EPERM;
	} else if (serials_low) {
		serials_low = false;
		request->op = GRIDOS_OP_LOW;
	} else if (!list_empty(&cancelled)) {
		call = list_first_entry(&cancelled, struct call, list);
		list_del_init(&call->list);
		request->op = GRIDOS_OP_CANCEL;
		request->id = call->id;
		*dropped = call;
	} else if (!list_empty(&queued)) {
		call = list_first_entry(&queued, struct call, list);
		if (room < call->in_len) {
			err = -EINVAL;
		} else {
			list_del_init(&call->list);
			hash_add(sent, &call->node, call->id);
			call->state = SENT;
			refcount_inc(&call->held);
			*sending = call;
		}
	} else {
		err = -EAGAIN;
	}
	spin_unlock(&lock);
	return err;
}

static void describe(const struct call *call, struct gridos_request *request)
{
	request->op = call->op;
	request->id = call->id;
	request->gpid = call->gpid;
	request->pid = pid_vnr(call->pid);
	request->uid = from_kuid_munged(current_user_ns(), call->uid);
	request->gid = from_kgid_munged(current_user_ns(), call->gid);
	request->flags = call->again ? GRIDOS_REQUEST_AGAIN : 0;
	request->len = call->in_len;
	request->room = call->room;
}

/* It could not be given to the daemon: it is as if nobody had read it. */
static void take_back(struct call *call)
{
	spin_lock(&lock);
	if (call->state == SENT) {
		hash_del(&call->node);
		requeue(call);
	}
	spin_unlock(&lock);
}

ssize_t gridos_read_request(struct file *file, char __user *to, size_t count)
{
	struct gridos_request request = { .size = sizeof(request) };
	struct call *sending = NULL, *dropped = NULL;
	ssize_t err;

	if (count < sizeof(request))
		return -EINVAL;
	for (;;) {
		err = take_request(file, count - sizeof(request), &request, &sending, &dropped);
		if (err != -EAGAIN || file->f_flags & O_NONBLOCK)
			break;
		err = wait_event_interruptible(readers, something_to_read());
		if (err)
			break;
	}
	if (err)
		return err;

	if (sending)
		describe(sending, &request);
	if (copy_to_user(to, &request, sizeof(request)) ||
	    (sending && copy_to_user(to + sizeof(request), sending->in, sending->in_len)))
		err = -EFAULT;
	if (sending) {
		if (err)
			take_back(sending);
		put_call(sending);
	}
	if (dropped)
		put_call(dropped);
	return err ?: sizeof(request) + request.len;
}

static struct call *find_sent(u64 id)
{
	struct call *call;

	hash_for_each_possible(sent, call, node, id) {
		if (call->id == id)
			return call;
	}
	return NULL;
}

static int take_answer(struct file *file, const struct gridos_answer *answer, void *bytes)
{
	struct call *call = NULL;
	int err = 0;

	spin_lock(&lock);
	if (daemon == file)
		call = find_sent(answer->id);
	if (daemon != file) {
		err = -EPERM;
	} else if (!call) {
		err = -ENOENT;
	} else if (answer->len > call->room) {
		err = -EMSGSIZE;
	} else {
		hash_del(&call->node);
		call->reply.bytes = bytes;
		call->reply.len = answer->len;
		finish(call, answer->error);
	}
	spin_unlock(&lock);
	if (!err)
		put_call(call);
	return err;
}

ssize_t gridos_write_answer(struct file *file, const char __user *from, size_t count)
{
	struct gridos_answer answer;
	void *bytes = NULL;
	u32 size;
	int err;

	if (!gridos_is_daemon(file))
		return -EPERM;
	if (count < sizeof(answer))
		return -EINVAL;
	if (get_user(size, (const u32 __user *)from))
		return -EFAULT;
	if (size < sizeof(answer) || size > count)
		return -EINVAL;
	err = copy_struct_from_user(&answer, sizeof(answer), from, size);
	if (err)
		return err;
	if (answer.len != count - size || answer.reserved)
		return -EINVAL;
	if (answer.error > 0 || answer.error < -511)
		return -EINVAL;
	if (answer.len > GRIDOS_CALL_MAX)
		return -EMSGSIZE;
	if (answer.len) {
		bytes = kvmalloc(answer.len, GFP_KERNEL_ACCOUNT);
		if (!bytes)
			return -ENOMEM;
		if (copy_from_user(bytes, from + size, answer.len)) {
			kvfree(bytes);
			return -EFAULT;
		}
	}
	err = take_answer(file, &answer, bytes);
	if (err) {
		kvfree(bytes);
		return err;
	}
	return count;
}

__poll_t gridos_poll(struct file *file, struct poll_table_struct *table)
{
	__poll_t mask;

	poll_wait(file, &readers, table);
	spin_lock(&lock);
	if (daemon != file)
		mask = EPOLLERR;
	else
		mask = EPOLLOUT | EPOLLWRNORM | (something_to_read() ? EPOLLIN | EPOLLRDNORM : 0);
	spin_unlock(&lock);
	return mask;
}
