/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a thread is to the grid, for all eBPF programs: processes.bpf.c marks threads, and others ask. The map is one for all of them,
 * by the path where it is pinned.
 */
#ifndef GRIDOS_MARKS_H
#define GRIDOS_MARKS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

typedef __u32 u32;
typedef __u64 u64;

/* Kinds of marks; with agent/kernel/src/ebpf.rs. */
enum { KEEPER = 1, INIT, PROCESS, VISITOR };

struct mark {
	u64 gpid;	/* of a PROCESS; 0 if there was no serial left */
	u64 parent;	/* the GPID of the process that made it, or 0 */
	u32 level;	/* of the agent's pid namespace: all pids are as the agent sees them */
	u32 kind;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

#define AF_INET 2
#define AF_INET6 10

#endif
