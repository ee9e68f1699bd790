/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files of the module know of each other.
 *
 *	main.c		loads and unloads
 *	processes.c	GPIDs: who has which; lookups take no lock
 *	follow.c	scheduler tracepoints: children inherit, the dead are forgotten
 *	tables.c	nodes and jobs, as the daemon published them
 *	calls.c		requests to the daemon, their answers, and what ends them early
 *	io.c		managed sockets, and /proc/gridos/io
 *	io_move.c	bytes from files to sockets, and back, waiting for the peer
 *	io_receive.c	what has arrived, to a file or to memory
 *	io_read.c	reads that are done later
 *	io_buffers.c	the sizes of a socket's buffers, and what they are taken from
 *	device.c	/dev/gridos
 *	proc.c		/proc/gridos, but for
 *	control.c	/proc/gridos/control
 */
#ifndef GRIDOS_H
#define GRIDOS_H

#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/pid.h>
#include <linux/poll.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/types.h>
#include <linux/gridos.h>

/* Whether the caller may know of every user's processes and jobs. */
bool gridos_sees_all(void);

/* === processes.c === */

/* What is known of a process of a job. */
struct gridos_identity {
	u64 gpid;
	u64 job;
	u32 task;
};

int gridos_processes_init(void);
void gridos_processes_exit(void);

int gridos_range(struct gridos_range *range);
u32 gridos_node_number(void);
int gridos_register(struct gridos_register *args);
int gridos_set_gpid(const struct gridos_register *args);
int gridos_enter(struct gridos_register *args);

void gridos_forked(struct task_struct *parent, struct task_struct *child);
void gridos_exited(struct task_struct *task);

bool gridos_identify(struct pid *tgid, struct gridos_identity *identity);
bool gridos_identify_current(struct gridos_identity *identity);
int gridos_lookup(struct gridos_lookup *args);

unsigned int gridos_process_count(void);
unsigned int gridos_lost_count(void);
extern const struct seq_operations gridos_gpids_seq;

/* === follow.c === */

int gridos_follow_init(void);
void gridos_follow_exit(void);

/* === tables.c === */

void gridos_tables_exit(void);
int gridos_publish(const struct gridos_publish *args);
int gridos_list(u32 table, struct gridos_list *args);
bool gridos_next_node(u64 from, struct gridos_node *node);
bool gridos_next_job(u64 from, struct gridos_job *job);

/* === calls.c === */

/* What a call came back with. The bytes are the receiver's, who frees them by kvfree(). */
struct gridos_reply {
	int error;
	u32 len;
	void *bytes;
};

int gridos_ask(u32 op, void *in, u32 in_len, u32 room, u32 flags, u32 timeout_ms,
	       struct gridos_reply *reply);

long gridos_patience(u32 ms);
int gridos_attach(struct file *file);
void gridos_detach(struct file *file);
bool gridos_is_daemon(struct file *file);
bool gridos_has_daemon(void);
void gridos_serials_low(void);
ssize_t gridos_read_request(struct file *file, char __user *to, size_t count);
ssize_t gridos_write_answer(struct file *file, const char __user *from, size_t count);
__poll_t gridos_poll(struct file *file, struct poll_table_struct *table);

/* === io.c, io_move.c, io_receive.c, io_read.c, io_buffers.c === */

int gridos_io_init(void);
void gridos_io_exit(void);

/* file is that of the device. */
int gridos_io_open(struct file *file, struct gridos_io_open *args);
int gridos_io_close(struct file *file, const struct gridos_io_open *args);
void gridos_io_release(struct file *file);
int gridos_io_send(struct file *file, struct gridos_io *args);
int gridos_io_recv(struct file *file, struct gridos_io *args);
int gridos_io_write(struct file *file, struct gridos_io *args);
int gridos_io_read(struct file *file, struct gridos_io *args);
int gridos_io_wait(struct file *file, struct gridos_io_wait *args);
int gridos_io_setopt(struct file *file, struct gridos_io_buffers *args);
int gridos_io_getopt(struct file *file, struct gridos_io_buffers *args);
extern const struct seq_operations gridos_io_seq;

/* === device.c === */

int gridos_device_init(void);
void gridos_device_exit(void);

/* === proc.c === */

int gridos_proc_init(void);
void gridos_proc_exit(void);

/* === control.c === */

extern const struct proc_ops gridos_control_ops;
extern const struct proc_ops gridos_pipes_ops;

#endif /* GRIDOS_H */
