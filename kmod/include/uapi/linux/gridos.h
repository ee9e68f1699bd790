/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The grid's operations, as /dev/gridos takes them: ioctl(fd, GRIDOS_IOC(op), &arguments).
 *
 * One space of numbers for all doors. Numbers up to 127 are answered by the kernel, those from
 * 128 to 255 are the daemon's own, and those from 256 go to the daemon as requests
 * (GRIDOS_OP_CALL).
 *
 * The arguments of each operation begin with their size. A struct grows at its end only, and
 * zero there means what an older program meant: a shorter one is taken as if zeros followed; a
 * longer one is refused with E2BIG, unless the rest is zero. What is written back is never
 * longer than the size that was given. Unknown flags and non-zero reserved fields are refused
 * with EINVAL, a size that is less than that of version 1 as well.
 *
 * Pointers are __u64, so that 32-bit programs need no translation. Process ids are those of the
 * caller's pid namespace, user ids those of its user namespace.
 */
#ifndef _UAPI_LINUX_GRIDOS_H
#define _UAPI_LINUX_GRIDOS_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define GRIDOS_UAPI_VERSION	1

#define GRIDOS_DEVICE		"/dev/gridos"
#define GRIDOS_PROC		"/proc/gridos"

#define GRIDOS_IOC_MAGIC	0xe9
#define GRIDOS_IOC(op)		_IO(GRIDOS_IOC_MAGIC, (op))

/*
 * In processes of jobs that asked for it, syscall(SYS_gridos, op, &arguments, size) is the same
 * without the device: the operations for programs, with or without the module. The size is that
 * which the arguments begin with. The agent answers, so that EAGAIN is for all but CALL without
 * GRIDOS_CALL_NOWAIT; EINTR is also for a call that was under way when its process was written
 * down or moved.
 *
 * The number is beyond all of the kernel's, and is ENOSYS where nobody answers. Should a kernel
 * have it one day, processes of such jobs could not make that call.
 */
#define SYS_gridos		0x677264

enum gridos_op {
	/* For programs. */
	GRIDOS_OP_VERSION	= 1,	/* struct gridos_version */
	GRIDOS_OP_SELF		= 2,	/* struct gridos_self */
	GRIDOS_OP_LOOKUP	= 3,	/* struct gridos_lookup */
	GRIDOS_OP_NODES		= 4,	/* struct gridos_list of struct gridos_node */
	GRIDOS_OP_JOBS		= 5,	/* struct gridos_list of struct gridos_job */
	GRIDOS_OP_CALL		= 6,	/* struct gridos_call */

	/* For programs: managed sockets, each on the open file where it was opened. */
	GRIDOS_OP_IO_OPEN	= 16,	/* struct gridos_io_open */
	GRIDOS_OP_IO_CLOSE	= 17,	/* struct gridos_io_open */
	GRIDOS_OP_IO_SEND	= 18,	/* struct gridos_io; a file to a socket */
	GRIDOS_OP_IO_RECV	= 19,	/* struct gridos_io; a socket to a file */
	GRIDOS_OP_IO_WRITE	= 20,	/* struct gridos_io; memory to a socket */
	GRIDOS_OP_IO_READ	= 21,	/* struct gridos_io; a socket to a file or memory, later */
	GRIDOS_OP_IO_WAIT	= 22,	/* struct gridos_io_wait; for what IO_READ began */
	GRIDOS_OP_IO_SETOPT	= 23,	/* struct gridos_io_buffers */
	GRIDOS_OP_IO_GETOPT	= 24,	/* struct gridos_io_buffers */

	/*
	 * For the daemon: CAP_SYS_ADMIN, and all but the first only on the file that is
	 * attached.
	 */
	GRIDOS_OP_ATTACH	= 128,	/* struct gridos_attach */
	GRIDOS_OP_REGISTER	= 129,	/* struct gridos_register */
	GRIDOS_OP_SET_GPID	= 130,	/* struct gridos_register */
	GRIDOS_OP_RANGE		= 131,	/* struct gridos_range */
	GRIDOS_OP_PUBLISH	= 132,	/* struct gridos_publish */

	/* For whoever starts a process of a job: CAP_SYS_ADMIN, on any file. */
	GRIDOS_OP_ENTER		= 133,	/* struct gridos_register */

	/* In requests alone. */
	GRIDOS_OP_CANCEL	= 192,	/* the caller of request id has given up; no answer */
	GRIDOS_OP_LOW		= 193,	/* a quarter of the serials is left: RANGE; no answer */

	/*
	 * What only the daemon can answer. The bytes in and out are between it and the caller; those
	 * of an error are a sentence.
	 */
	GRIDOS_OP_COMMAND	= 256,	/* one line of text, as written to /proc/gridos/control */
	GRIDOS_OP_STATUS	= 257,	/* struct gridos_target, struct gridos_status */
	GRIDOS_OP_SIGNAL	= 258,	/* struct gridos_target; value is the signal */
	GRIDOS_OP_MIGRATE	= 259,	/* struct gridos_target, struct gridos_moved */
	GRIDOS_OP_CHECKPOINT	= 260,	/* struct gridos_target, struct gridos_checkpointed */
	GRIDOS_OP_SUBMIT	= 261,	/* text of a job file, struct gridos_submitted */
};

/*
 * A GPID is a node's number and a serial of that node's, printed 12.5031. It is never used
 * twice, and never 0.
 */
#define GRIDOS_GPID(node, serial)	((((__u64)(node)) << 32) | (__u32)(serial))
#define GRIDOS_GPID_NODE(gpid)		((__u32)((gpid) >> 32))
#define GRIDOS_GPID_SERIAL(gpid)	((__u32)(gpid))

/*
 * The highest number of a node; it leaves a GPID positive where it is taken for a signed
 * number.
 */
#define GRIDOS_NODE_MAX		0x7fffffff

/* The most bytes of a call, in and out. */
#define GRIDOS_CALL_MAX		65536

/* The most records of a table. */
#define GRIDOS_NODES_MAX	4096
#define GRIDOS_JOBS_MAX		65536

/* A daemon is attached. */
#define GRIDOS_VERSION_DAEMON	(1U << 0)

struct gridos_version {
	__u32 size;
	__u32 version;		/* out: GRIDOS_UAPI_VERSION of the module */
	__u32 flags;		/* out: GRIDOS_VERSION_* */
	__u32 node;		/* out: this node's number, 0 before a daemon told it */
};

/* The calling process. All but node is 0 if it belongs to no job. */
struct gridos_self {
	__u32 size;
	__u32 node;		/* out: where it runs */
	__u64 gpid;		/* out */
	__u64 job;		/* out: its home's number << 32 | serial */
	__u32 task;		/* out */
	__u32 reserved;
};

/* Exactly one of them: what is given; the other is found. */
#define GRIDOS_LOOKUP_PID	(1U << 0)
#define GRIDOS_LOOKUP_GPID	(1U << 1)

/*
 * ESRCH if there is no such process here, if it belongs to no job, if the caller's pid
 * namespace does not have it, and if it is another user's, unless the caller has CAP_SYS_PTRACE
 * or CAP_SYS_ADMIN.
 */
struct gridos_lookup {
	__u32 size;
	__u32 flags;		/* GRIDOS_LOOKUP_* */
	__u64 gpid;
	__s32 pid;
	__u32 reserved;
};

enum gridos_node_state {
	GRIDOS_NODE_UP		= 0,
	GRIDOS_NODE_SUSPECT	= 1,
	GRIDOS_NODE_DOWN	= 2,
	GRIDOS_NODE_REVOKED	= 3,
};

struct gridos_node {
	__u32 number;
	__u32 state;		/* enum gridos_node_state */
	__u64 memory;		/* bytes that its owner lends */
	__u64 memory_free;	/* bytes */
	__u32 cpus;		/* thousandths of a processor that its owner lends */
	__u32 cpus_free;	/* thousandths */
	char name[64];		/* ends with a zero */
};

enum gridos_job_state {
	GRIDOS_JOB_WAITING	= 0,
	GRIDOS_JOB_RUNNING	= 1,
	GRIDOS_JOB_DONE		= 2,
};

struct gridos_job {
	__u64 job;		/* its home's number << 32 | serial */
	__u32 uid;		/* its owner here */
	__u32 state;		/* enum gridos_job_state */
	__u32 tasks;
	__u32 running;
	__u32 done;		/* ended, well or not */
	__u32 failed;		/* of those, not well */
	char name[64];		/* ends with a zero */
};

/*
 * Reads a table that the daemon published: nodes by number, or those jobs by number that are
 * the caller's (all of them with CAP_SYS_PTRACE or CAP_SYS_ADMIN). Begins with the first record
 * whose number is at least from; to go on, give one more than the last number.
 */
struct gridos_list {
	__u32 size;
	__u32 record_size;	/* as the program knows it; the rest of a longer one is zero */
	__u64 records;		/* pointer */
	__u64 from;
	__u32 count;		/* in: records that there is room for; out: that were written */
	__u32 reserved;
};

/*
 * EAGAIN where there is no daemon, and where it goes away before it has answered. Otherwise the
 * next one is waited for.
 */
#define GRIDOS_CALL_NOWAIT	(1U << 0)

/*
 * Asks the daemon. ETIMEDOUT after the time given, EINTR after a signal: the daemon is told,
 * but what was asked for may have been done. EDQUOT if the user has too many calls under way,
 * EBUSY if all users together have. Any other error is the daemon's answer, which may have
 * bytes, too.
 */
struct gridos_call {
	__u32 size;
	__u32 op;		/* 256 or more */
	__u32 flags;		/* GRIDOS_CALL_* */
	__u32 timeout_ms;	/* 0: as the module's parameter timeout_ms says */
	__u64 in;		/* pointer */
	__u64 out;		/* pointer */
	__u32 in_len;		/* at most GRIDOS_CALL_MAX */
	__u32 out_len;		/* in: the room, at most GRIDOS_CALL_MAX; out: bytes written */
};

/* === Managed sockets === */

/*
 * OPEN makes a connected TCP socket of the caller's a managed one, and gives it a number on this
 * open file of the device. The socket stays open, whatever is done with fd, until CLOSE or until
 * the device's file is closed. ENOTSOCK, EPROTONOSUPPORT, ENOTCONN: it is none; EEXIST: it is
 * managed already; EDQUOT: the user has too many, EBUSY: all users together have.
 *
 * CLOSE takes the number; fd is 0. What is under way ends with ECANCELED.
 *
 * All others: EBADF if the file has no socket of this number, EPERM if it is another user's,
 * unless the caller has CAP_SYS_PTRACE or CAP_SYS_ADMIN.
 */
struct gridos_io_open {
	__u32 size;
	__s32 fd;
	__u32 flags;		/* 0 */
	__u32 socket;		/* OPEN: out; CLOSE: in */
};

/* EAGAIN rather than wait for the peer. */
#define GRIDOS_IO_NOWAIT	(1U << 0)
/* RECV, READ: done as soon as there are some bytes, not when all are there. */
#define GRIDOS_IO_SOME		(1U << 1)
/* WAIT: gives the read up. */
#define GRIDOS_IO_CANCEL	(1U << 2)

/* The most bytes of a READ to memory. */
#define GRIDOS_IO_READ_MAX	1048576

/* The most reads of a socket that are posted, or done but not waited for. */
#define GRIDOS_IO_READS_MAX	16

/*
 * Moves bytes until all have been moved, the file or the peer has come to its end, or something
 * else ends it. Success if any byte was moved: done tells how many, and what was left is still
 * in the socket, or in the file. An end of file, or of the peer's bytes, is success with less.
 * ETIMEDOUT when the peer did nothing for so long, EINTR after a signal.
 *
 * The file is a regular one; with RECV and READ it is neither O_APPEND nor O_DIRECT. Whether it
 * may be read or written, and how far, is as with read() and write(). What a file sends must not
 * be changed until the peer has it, as the socket holds the file's own pages. EPIPE, without a
 * signal, if the peer takes no more. RECV and READ: EOPNOTSUPP to a file if the socket has
 * another protocol on top of TCP, as that of TLS; EBADMSG where the next byte is urgent.
 *
 * One operation sends at a time, and one receives: EBUSY. EIO if somebody else takes bytes from
 * the socket while a file is written: the file has them, too.
 *
 * READ comes back at once, with its number. Reads of a socket are served in their order. The
 * bytes go to file at offset, which is not -1; or, if file is -1, to memory, which is locked
 * (RLIMIT_MEMLOCK) and must not be used until the read has been waited for. EDQUOT if too many
 * are posted.
 */
struct gridos_io {
	__u32 size;
	__u32 socket;
	__u32 flags;		/* GRIDOS_IO_* */
	__u32 timeout_ms;	/* 0: as the module's parameter timeout_ms says; READ: 0 */
	__s32 file;		/* SEND, RECV, READ; otherwise -1 */
	__u32 read;		/* READ: out */
	__s64 offset;		/* in the file; -1: its position; without one 0 */
	__u64 bytes;		/* pointer: WRITE, READ without a file; otherwise 0 */
	__u64 length;
	__u64 done;		/* out; 0 of READ */
};

/*
 * Waits for a read, or for any if its number is 0; ENOENT if there is none. Each read is told
 * once. With CANCEL it ends now, if it has not ended, with ECANCELED and what it has got.
 */
struct gridos_io_wait {
	__u32 size;
	__u32 socket;
	__u32 read;		/* in, out */
	__u32 flags;		/* GRIDOS_IO_NOWAIT, GRIDOS_IO_CANCEL */
	__u32 timeout_ms;	/* 0: as the module's parameter timeout_ms says */
	__s32 error;		/* out: why it ended early, as a number below 0; or 0 */
	__u64 done;		/* out: bytes, also of one that ended early */
};

/* SETOPT: what is given. AUTO alone, or with MAX; without it what is given stays. */
#define GRIDOS_IO_BUFFER_OUT		(1U << 0)
#define GRIDOS_IO_BUFFER_IN		(1U << 1)
#define GRIDOS_IO_BUFFER_MAX		(1U << 2)
/* Sizes follow what is measured: twice the bandwidth-delay product, at least 64 KiB. */
#define GRIDOS_IO_BUFFER_AUTO		(1U << 3)

/*
 * The socket's buffers, in bytes that they hold; the kernel takes as much again for itself. They
 * are at most max, which is at most the module's parameter max_buffer. SETOPT writes back what
 * GETOPT tells.
 */
struct gridos_io_buffers {
	__u32 size;
	__u32 socket;
	__u32 flags;		/* SETOPT: GRIDOS_IO_BUFFER_*; out: GRIDOS_IO_BUFFER_AUTO, or 0 */
	__u32 rtt_us;		/* out: smoothed */
	__u64 out;		/* of what is sent */
	__u64 in;		/* of what is received */
	__u64 max;
	__u64 rate_out;		/* out: bytes a second, as TCP measured them */
	__u64 rate_in;		/* out: bytes a second that were taken here */
	__u64 product;		/* out: the higher rate times min_rtt_us */
	__u64 sent;		/* out: bytes by SEND and WRITE */
	__u64 received;		/* out: bytes by RECV and READ */
	__u32 min_rtt_us;	/* out: 0 before it was measured */
	__u32 reserved;
};

/*
 * Makes the open file the grid's daemon until it is closed. EBUSY if there is one;
 * EPROTONOSUPPORT if it is too new.
 */
struct gridos_attach {
	__u32 size;
	__u32 version;		/* GRIDOS_UAPI_VERSION that the daemon was built with */
};

/*
 * REGISTER gives a process the next GPID: EEXIST if it has one, ENXIO without RANGE, ENOSPC at
 * the range's end. SET_GPID gives it the one that it had on another node, or before it was
 * written down; what it has is dropped. EEXIST if another process has that GPID, EINVAL if this
 * node has yet to hand it out. With both, ENFILE if there are more processes than the module's
 * parameter max_processes. Its children, not those that it has already, get GPIDs of their own
 * in the same job and task. ENTER is REGISTER of the caller itself; its pid and gpid are 0.
 */
struct gridos_register {
	__u32 size;
	__s32 pid;		/* any thread of it */
	__u64 gpid;		/* REGISTER, ENTER: out; SET_GPID: in */
	__u64 job;
	__u32 task;
	__u32 reserved;
};

/*
 * The serials that may be handed out: next to end - 1. The module hands none out twice,
 * whatever it is told: next is raised to the first that it has not used, and told back. ERANGE
 * if nothing is left of the range.
 */
struct gridos_range {
	__u32 size;
	__u32 node;		/* 1 to GRIDOS_NODE_MAX */
	__u32 next;		/* in, out; at least 1 */
	__u32 end;
};

/*
 * Replaces a table as a whole. Numbers must ascend. A daemon's older, shorter records end in
 * zeros.
 */
struct gridos_publish {
	__u32 size;
	__u32 table;		/* GRIDOS_OP_NODES or GRIDOS_OP_JOBS */
	__u64 records;		/* pointer */
	__u32 record_size;
	__u32 count;
};

/* The request was given to an earlier daemon, which went away: it may have been done. */
#define GRIDOS_REQUEST_AGAIN	(1U << 0)

/*
 * read() of the attached file gives one of these, with its bytes behind it. EINVAL if there is
 * no room for all.
 */
struct gridos_request {
	__u32 size;		/* of this struct */
	__u32 op;
	__u64 id;
	__u64 gpid;		/* of the caller; 0 if it belongs to no job */
	__s32 pid;		/* of the caller; 0 if the daemon's pid namespace does not have it */
	__u32 uid;		/* of the caller */
	__u32 gid;		/* of the caller */
	__u32 flags;		/* GRIDOS_REQUEST_* */
	__u32 len;		/* bytes that follow */
	__u32 room;		/* the most bytes that the answer may have */
};

/*
 * write() to the attached file takes one of these, with its bytes behind it. ENOENT if nobody
 * waits for it any more.
 */
struct gridos_answer {
	__u32 size;		/* of this struct; the bytes begin there */
	__s32 error;		/* 0, or -1 to -511 */
	__u64 id;
	__u32 len;		/* bytes that follow: EMSGSIZE if there is no room for them */
	__u32 reserved;
};

/* === In and out of calls. A struct that is longer than the other side knows ends in zeros. === */

/* All tasks of a job. */
#define GRIDOS_TASK_ALL		0xffffffff

/*
 * MIGRATE comes back when the task is on its way, not when it is there; who is part of the task
 * has to say so, as nobody can wait for its own move.
 */
#define GRIDOS_TARGET_NOWAIT	(1U << 0)

/* A process, or if gpid is 0 a task of a job. */
struct gridos_target {
	__u32 size;
	__u32 flags;		/* GRIDOS_TARGET_* */
	__u64 gpid;
	__u64 job;		/* its home's number << 32 | serial */
	__u32 task;		/* or GRIDOS_TASK_ALL: STATUS, SIGNAL */
	__s32 value;		/* SIGNAL: 1 to 64; MIGRATE: a node's number, 0 for the best */
};

struct gridos_status {
	__u32 size;
	__u32 state;		/* enum gridos_job_state, of the task if it is about one */
	__u64 job;
	__u32 task;		/* as asked; that of the process */
	__u32 node;		/* where the task runs; 0 if it does not, and of all tasks */
	__s32 exit_status;	/* as a shell has it; -1 before the end, and of all tasks */
	__u32 running;		/* tasks */
	__u32 done;		/* tasks that have ended, well or not */
	__u32 failed;		/* of those, not well */
};

struct gridos_moved {
	__u32 size;
	__u32 node;		/* where it is now; 0 with NOWAIT */
	__u64 stopped_ns;	/* how long it stood still; 0 with NOWAIT */
};

struct gridos_checkpointed {
	__u32 size;
	__u32 reserved;
	__u64 number;
	__u64 bytes;		/* that it took in the store */
};

struct gridos_submitted {
	__u32 size;
	__u32 reserved;
	__u64 job;		/* its home's number << 32 | serial */
};

#endif /* _UAPI_LINUX_GRIDOS_H */
