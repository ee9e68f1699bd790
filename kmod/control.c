// SPDX-License-Identifier: GPL-2.0
/*
 * /proc/gridos/control: a command is written, and its answer is read from the same open file.
 * /proc/gridos/pipes: as if "pipes" had been written. Who may see which the daemon alone knows.
 *
 * One write is one command, a line at most GRIDOS_COMMAND_MAX long; its newline, if it has one,
 * is not sent on. The write comes back with the answer: with an error if the daemon said so,
 * and then there may be a text to read, too. Each command drops what is left of the answer
 * before. With O_NONBLOCK, no daemon means EAGAIN.
 *
 * An open file keeps the module loaded: it may wait for the daemon.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "gridos.h"

#define GRIDOS_COMMAND_MAX	4096

struct dialogue {
	/* A command is under way, or its answer is being read. */
	struct mutex lock;
	struct gridos_reply reply;
	loff_t read;
	/* The pipes were asked for. */
	bool asked;
};

static int control_open(struct inode *inode, struct file *file)
{
	struct dialogue *dialogue;

	dialogue = kzalloc(sizeof(*dialogue), GFP_KERNEL_ACCOUNT);
	if (!dialogue)
		return -ENOMEM;
	if (!try_module_get(THIS_MODULE)) {
		kfree(dialogue);
		return -ENODEV;
	}
	mutex_init(&dialogue->lock);
	file->private_data = dialogue;
	return stream_open(inode, file);
}

/* proc_remove() waits for this function, so it may be in a module that nothing holds any more. */
static int control_release(struct inode *inode, struct file *file)
{
	struct dialogue *dialogue = file->private_data;

	kvfree(dialogue->reply.bytes);
	kfree(dialogue);
	module_put(THIS_MODULE);
	return 0;
}

/* The daemon wrote the answer, but it is the reader's memory as long as the file is open. */
static int take_over(struct gridos_reply *reply)
{
	void *bytes = NULL;

	if (reply->len) {
		bytes = kvmalloc(reply->len, GFP_KERNEL_ACCOUNT);
		if (bytes)
			memcpy(bytes, reply->bytes, reply->len);
		else
			reply->error = -ENOMEM;
	}
	kvfree(reply->bytes);
	reply->bytes = bytes;
	reply->len = bytes ? reply->len : 0;
	return reply->error;
}

/* Asks the daemon in place of what was asked before. The line is its receiver's. */
static int ask(struct file *file, char *line, size_t len)
{
	struct dialogue *dialogue = file->private_data;
	u32 flags = file->f_flags & O_NONBLOCK ? GRIDOS_CALL_NOWAIT : 0;
	int err;

	kvfree(dialogue->reply.bytes);
	memset(&dialogue->reply, 0, sizeof(dialogue->reply));
	dialogue->read = 0;
	err = gridos_ask(GRIDOS_OP_COMMAND, line, len, GRIDOS_CALL_MAX, flags, 0, &dialogue->reply);
	return err ?: take_over(&dialogue->reply);
}

static ssize_t control_write(struct file *file, const char __user *from, size_t count, loff_t *pos)
{
	struct dialogue *dialogue = file->private_data;
	size_t len = count;
	char *line;
	int err;

	if (count > GRIDOS_COMMAND_MAX)
		return -EMSGSIZE;
	line = memdup_user_nul(from, count);
	if (IS_ERR(line))
		return PTR_ERR(line);
	if (len && line[len - 1] == '\n')
		len--;
	if (!len || memchr(line, '\n', len) || memchr(line, '\0', len)) {
		kfree(line);
		return -EINVAL;
	}
	if (mutex_lock_interruptible(&dialogue->lock)) {
		kfree(line);
		return -ERESTARTSYS;
	}
	err = ask(file, line, len);
	mutex_unlock(&dialogue->lock);
	return err ?: count;
}

static ssize_t read_answer(struct dialogue *dialogue, char __user *to, size_t count)
{
	return simple_read_from_buffer(to, count, &dialogue->read, dialogue->reply.bytes,
				       dialogue->reply.len);
}

static ssize_t control_read(struct file *file, char __user *to, size_t count, loff_t *pos)
{
	struct dialogue *dialogue = file->private_data;
	ssize_t done;

	if (mutex_lock_interruptible(&dialogue->lock))
		return -ERESTARTSYS;
	done = read_answer(dialogue, to, count);
	mutex_unlock(&dialogue->lock);
	return done;
}

/* Asks at the first read; whoever was refused may read again. */
static ssize_t pipes_read(struct file *file, char __user *to, size_t count, loff_t *pos)
{
	struct dialogue *dialogue = file->private_data;
	ssize_t done = 0;

	if (mutex_lock_interruptible(&dialogue->lock))
		return -ERESTARTSYS;
	if (!dialogue->asked) {
		char *line = kstrdup("pipes", GFP_KERNEL_ACCOUNT);

		done = line ? ask(file, line, strlen(line)) : -ENOMEM;
		dialogue->asked = !done;
	}
	if (!done)
		done = read_answer(dialogue, to, count);
	mutex_unlock(&dialogue->lock);
	return done;
}

const struct proc_ops gridos_control_ops = {
	.proc_open = control_open,
	.proc_release = control_release,
	.proc_read = control_read,
	.proc_write = control_write,
};

const struct proc_ops gridos_pipes_ops = {
	.proc_open = control_open,
	.proc_release = control_release,
	.proc_read = pipes_read,
};
