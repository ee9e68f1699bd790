// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/gridos: every operation is an ioctl; the daemon reads requests and writes answers
 * besides.
 *
 * Anybody may open it. What a program may ask for is checked where it is answered; the daemon's
 * operations need CAP_SYS_ADMIN each time, whoever opened the file, and all but ATTACH and ENTER
 * need the file that is attached.
 */
#include <linux/capability.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "gridos.h"

union arguments {
	struct gridos_version version;
	struct gridos_self self;
	struct gridos_lookup lookup;
	struct gridos_list list;
	struct gridos_call call;
	struct gridos_io_open io_open;
	struct gridos_io io;
	struct gridos_io_wait io_wait;
	struct gridos_io_buffers io_buffers;
	struct gridos_attach attach;
	struct gridos_register reg;
	struct gridos_range range;
	struct gridos_publish publish;
};

static int op_version(struct file *file, union arguments *args)
{
	args->version.version = GRIDOS_UAPI_VERSION;
	args->version.flags = gridos_has_daemon() ? GRIDOS_VERSION_DAEMON : 0;
	args->version.node = gridos_node_number();
	return 0;
}

static int op_self(struct file *file, union arguments *args)
{
	struct gridos_identity identity = {};

	if (args->self.reserved)
		return -EINVAL;
	gridos_identify_current(&identity);
	args->self.node = gridos_node_number();
	args->self.gpid = identity.gpid;
	args->self.job = identity.job;
	args->self.task = identity.task;
	return 0;
}

static int op_lookup(struct file *file, union arguments *args)
{
	return gridos_lookup(&args->lookup);
}

static int op_nodes(struct file *file, union arguments *args)
{
	return gridos_list(GRIDOS_OP_NODES, &args->list);
}

static int op_jobs(struct file *file, union arguments *args)
{
	return gridos_list(GRIDOS_OP_JOBS, &args->list);
}

static int op_call(struct file *file, union arguments *args)
{
	struct gridos_call *call = &args->call;
	struct gridos_reply reply = {};
	u32 room = call->out_len;
	void *in = NULL;
	int err;

	call->out_len = 0;
	if (call->op < GRIDOS_OP_COMMAND || call->flags & ~GRIDOS_CALL_NOWAIT)
		return -EINVAL;
	if (call->in_len > GRIDOS_CALL_MAX || room > GRIDOS_CALL_MAX)
		return -EMSGSIZE;
	if (call->in_len) {
		in = kvmalloc(call->in_len, GFP_KERNEL_ACCOUNT);
		if (!in)
			return -ENOMEM;
		if (copy_from_user(in, u64_to_user_ptr(call->in), call->in_len)) {
			kvfree(in);
			return -EFAULT;
		}
	}
	err = gridos_ask(call->op, in, call->in_len, room, call->flags, call->timeout_ms, &reply);
	if (err)
		return err;
	if (copy_to_user(u64_to_user_ptr(call->out), reply.bytes, reply.len))
		err = -EFAULT;
	else
		call->out_len = reply.len;
	kvfree(reply.bytes);
	return err ?: reply.error;
}

static int op_io_open(struct file *file, union arguments *args)
{
	return gridos_io_open(file, &args->io_open);
}

static int op_io_close(struct file *file, union arguments *args)
{
	return gridos_io_close(file, &args->io_open);
}

static int op_io_send(struct file *file, union arguments *args)
{
	return gridos_io_send(file, &args->io);
}

static int op_io_recv(struct file *file, union arguments *args)
{
	return gridos_io_recv(file, &args->io);
}

static int op_io_write(struct file *file, union arguments *args)
{
	return gridos_io_write(file, &args->io);
}

static int op_io_read(struct file *file, union arguments *args)
{
	return gridos_io_read(file, &args->io);
}

static int op_io_wait(struct file *file, union arguments *args)
{
	return gridos_io_wait(file, &args->io_wait);
}

static int op_io_setopt(struct file *file, union arguments *args)
{
	return gridos_io_setopt(file, &args->io_buffers);
}

static int op_io_getopt(struct file *file, union arguments *args)
{
	return gridos_io_getopt(file, &args->io_buffers);
}

static int op_attach(struct file *file, union arguments *args)
{
	if (!args->attach.version)
		return -EINVAL;
	if (args->attach.version > GRIDOS_UAPI_VERSION)
		return -EPROTONOSUPPORT;
	if ((file->f_mode & (FMODE_READ | FMODE_WRITE)) != (FMODE_READ | FMODE_WRITE))
		return -EBADF;
	return gridos_attach(file);
}

static int op_register(struct file *file, union arguments *args)
{
	return gridos_register(&args->reg);
}

static int op_set_gpid(struct file *file, union arguments *args)
{
	return gridos_set_gpid(&args->reg);
}

static int op_range(struct file *file, union arguments *args)
{
	return gridos_range(&args->range);
}

static int op_publish(struct file *file, union arguments *args)
{
	return gridos_publish(&args->publish);
}

static int op_enter(struct file *file, union arguments *args)
{
	return gridos_enter(&args->reg);
}

/* Who may. */
enum right { ANYBODY, ADMIN, DAEMON };

struct operation {
	int (*run)(struct file *file, union arguments *args);
	/*
	 * As this module knows the struct. All are those of version 1 yet: there is no shorter
	 * one.
	 */
	u32 size;
	enum right right;
};

#define OPERATION(_run, _type, _right) \
	{ .run = (_run), .size = sizeof(_type), .right = (_right) }

static const struct operation operations[] = {
	[GRIDOS_OP_VERSION] = OPERATION(op_version, struct gridos_version, ANYBODY),
	[GRIDOS_OP_SELF] = OPERATION(op_self, struct gridos_self, ANYBODY),
	[GRIDOS_OP_LOOKUP] = OPERATION(op_lookup, struct gridos_lookup, ANYBODY),
	[GRIDOS_OP_NODES] = OPERATION(op_nodes, struct gridos_list, ANYBODY),
	[GRIDOS_OP_JOBS] = OPERATION(op_jobs, struct gridos_list, ANYBODY),
	[GRIDOS_OP_CALL] = OPERATION(op_call, struct gridos_call, ANYBODY),
	[GRIDOS_OP_IO_OPEN] = OPERATION(op_io_open, struct gridos_io_open, ANYBODY),
	[GRIDOS_OP_IO_CLOSE] = OPERATION(op_io_close, struct gridos_io_open, ANYBODY),
	[GRIDOS_OP_IO_SEND] = OPERATION(op_io_send, struct gridos_io, ANYBODY),
	[GRIDOS_OP_IO_RECV] = OPERATION(op_io_recv, struct gridos_io, ANYBODY),
	[GRIDOS_OP_IO_WRITE] = OPERATION(op_io_write, struct gridos_io, ANYBODY),
	[GRIDOS_OP_IO_READ] = OPERATION(op_io_read, struct gridos_io, ANYBODY),
	[GRIDOS_OP_IO_WAIT] = OPERATION(op_io_wait, struct gridos_io_wait, ANYBODY),
	[GRIDOS_OP_IO_SETOPT] = OPERATION(op_io_setopt, struct gridos_io_buffers, ANYBODY),
	[GRIDOS_OP_IO_GETOPT] = OPERATION(op_io_getopt, struct gridos_io_buffers, ANYBODY),
	[GRIDOS_OP_ATTACH] = OPERATION(op_attach, struct gridos_attach, ADMIN),
	[GRIDOS_OP_REGISTER] = OPERATION(op_register, struct gridos_register, DAEMON),
	[GRIDOS_OP_SET_GPID] = OPERATION(op_set_gpid, struct gridos_register, DAEMON),
	[GRIDOS_OP_RANGE] = OPERATION(op_range, struct gridos_range, DAEMON),
	[GRIDOS_OP_PUBLISH] = OPERATION(op_publish, struct gridos_publish, DAEMON),
	[GRIDOS_OP_ENTER] = OPERATION(op_enter, struct gridos_register, ADMIN),
};

static long device_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *user = (void __user *)arg;
	const struct operation *operation;
	union arguments args;
	u32 op = _IOC_NR(cmd);
	u32 size;
	int err;

	if (cmd != GRIDOS_IOC(op) || op >= ARRAY_SIZE(operations) || !operations[op].run)
		return -ENOTTY;
	operation = &operations[op];
	if (operation->right != ANYBODY && !capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (operation->right == DAEMON && !gridos_is_daemon(file))
		return -EPERM;

	if (get_user(size, (u32 __user *)user))
		return -EFAULT;
	if (size < operation->size)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;
	err = copy_struct_from_user(&args, operation->size, user, size);
	if (err)
		return err;
	/* It may have been changed meanwhile. */
	args.version.size = size;

	err = operation->run(file, &args);
	/* An answer that is an error may have bytes. */
	if ((!err || op == GRIDOS_OP_CALL) && copy_to_user(user, &args, operation->size))
		err = err ?: -EFAULT;
	return err;
}

static bool is_for_daemon(struct file *file)
{
	return capable(CAP_SYS_ADMIN) && gridos_is_daemon(file);
}

static ssize_t device_read(struct file *file, char __user *to, size_t count, loff_t *pos)
{
	return is_for_daemon(file) ? gridos_read_request(file, to, count) : -EPERM;
}

static ssize_t device_write(struct file *file, const char __user *from, size_t count, loff_t *pos)
{
	return is_for_daemon(file) ? gridos_write_answer(file, from, count) : -EPERM;
}

/* Its private data are the managed sockets, once there are any. */
static int device_open(struct inode *inode, struct file *file)
{
	file->private_data = NULL;
	return stream_open(inode, file);
}

static int device_release(struct inode *inode, struct file *file)
{
	gridos_detach(file);
	gridos_io_release(file);
	return 0;
}

static const struct file_operations device_ops = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.read = device_read,
	.write = device_write,
	.poll = gridos_poll,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "gridos",
	.fops = &device_ops,
	.mode = 0666,
};

int gridos_device_init(void)
{
	return misc_register(&device);
}

void gridos_device_exit(void)
{
	misc_deregister(&device);
}
