// Loaded into `criu` by LD_PRELOAD. What for: see mod.rs.
//
// GRIDOS_REAL_USER is made the real user of the process, as it must not be before: the loader would not load this.
//
// In a restore, GRIDOS_GO names a fifo: a byte there lets CRIU open the first image. One in the fifo of that name with ".run" after it
// lets the processes run. Two, for the second byte must not be taken for the first.
//
// In a dump, it hides pages from CRIU that are moved without it. The folder GRIDOS_HIDE holds a file for each process, named by its pid: the first line and the flags of each mapping, as
// /proc/PID/smaps had them a moment ago. Processes without a file are dumped as ever.
//
//   openat(.., "smaps")   that copy, if it has all lines of the current maps; else the real one. Either way it is remembered which
//                         mappings can be restored later.
//   ioctl(PAGEMAP_SCAN)   of the same process: those mappings have no pages.
//   sendmsg               with GRIDOS_LISTENERS, of the question for the TCP sockets of the whole network: those that listen. The kernel looks for
//                         the others in tables of the size of the machine, which takes milliseconds. A task that may have no other is
//                         refused all the same if it has one: CRIU takes a socket that it was not told of for one without connection, and
//                         looks whether it is.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

struct region { uint64_t start, end, categories; };
struct scan { uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, returned; };
#define PAGEMAP_SCAN _IOWR('f', 16, struct scan)

// The process whose smaps were read last, and what of it is hidden, in order.
static int hidden_pid;
static struct region *hidden;
static size_t hidden_count, hidden_room;

__attribute__((constructor)) static void borrow_user(void) {
    const char *user = getenv("GRIDOS_REAL_USER");
    if (!user) return;
    long number = atol(user);
    if (syscall(SYS_setresgid, number, 0, 0) || syscall(SYS_setresuid, number, 0, 0)) _exit(126);
}

static long pass(long number, long a, long b, long c, long d) { return syscall(number, a, b, c, d); }

// The pid in the path of a descriptor: "/proc/PID" and this.
static int pid_of(int fd, const char *after) {
    char name[32], path[64], expected[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    int pid = 0;
    if (sscanf(path, "/proc/%d", &pid) != 1) return 0;
    snprintf(expected, sizeof expected, "/proc/%d%s", pid, after);
    return strcmp(path, expected) ? 0 : pid;
}

static FILE *file(int folder, const char *name) {
    long fd = pass(SYS_openat, folder, (long)name, O_RDONLY | O_CLOEXEC, 0);
    return fd < 0 ? 0 : fdopen(fd, "r");
}

static int is_first(const char *line) { return (line[0] >= '0' && line[0] <= '9') || (line[0] >= 'a' && line[0] <= 'f'); }

// Hides the mapping of this first line, unless its flags say that CRIU restores it at once. False where there is no memory.
static int hide(const char *line, const char *flags) {
    uint64_t start, end;
    unsigned long inode;
    char access[8];
    int at = 0;
    if (sscanf(line, "%lx-%lx %7s %*s %*s %lu%n", &start, &end, access, &inode, &at) != 4) return 1;
    const char *name = line + at + strspn(line + at, " ");
    int named = *name == '\n' || !*name || !strcmp(name, "[heap]\n") || !strcmp(name, "[stack]\n") || !strncmp(name, "[anon:", 6);
    if (access[3] != 'p' || inode || !named) return 1;
    if (strstr(flags, " lo") || strstr(flags, " ht") || strstr(flags, " io") || strstr(flags, " pf")) return 1;
    if (hidden_count == hidden_room) {
        size_t room = hidden_room ? 2 * hidden_room : 1024;
        struct region *more = realloc(hidden, room * sizeof *more);
        if (!more) return 0;
        hidden = more;
        hidden_room = room;
    }
    hidden[hidden_count++] = (struct region){start, end, 0};
    return 1;
}

// Every mapping of `maps` with the flags that `kept` has for it. False if it lacks one.
static int from_kept(FILE *maps, FILE *kept, FILE *out) {
    char line[4352], first[4352], flags[512];
    while (fgets(line, sizeof line, maps)) {
        int found = 0;
        while (!found && fgets(first, sizeof first, kept) && fgets(flags, sizeof flags, kept)) {
            found = !strcmp(first, line);
            if (!found && strtoull(first, 0, 16) >= strtoull(line, 0, 16)) return 0;
        }
        if (!found || strncmp(flags, "VmFlags:", 8) || !hide(line, flags)) return 0;
        fputs(line, out);
        fputs(flags, out);
    }
    return !ferror(maps);
}

static int from_real(FILE *smaps, FILE *out) {
    char line[4352], first[4352] = "";
    while (fgets(line, sizeof line, smaps)) {
        if (is_first(line)) strcpy(first, line);
        else if (!strncmp(line, "VmFlags:", 8) && !hide(first, line)) return 0;
        fputs(line, out);
    }
    return !ferror(smaps);
}

// What CRIU reads instead of a process's smaps; -1 if it is the real one, and nothing is hidden.
static int smaps(int proc) {
    const char *folder = getenv("GRIDOS_HIDE");
    int pid = folder ? pid_of(proc, "") : 0;
    if (!pid || pid == getpid()) return -1;
    char path[512];
    snprintf(path, sizeof path, "%s/%d", folder, pid);
    FILE *kept = file(AT_FDCWD, path), *maps = 0, *real = 0, *out = 0;
    if (!kept) return -1;
    int fd = memfd_create("smaps", MFD_CLOEXEC), done = 0;
    if (fd >= 0) out = fdopen(dup(fd), "w");
    hidden_pid = hidden_count = 0;
    if (out && (maps = file(proc, "maps"))) done = from_kept(maps, kept, out);
    if (out && !done && (real = file(proc, "smaps"))) {
        hidden_count = 0;
        rewind(out);
        done = !ftruncate(fd, 0) && from_real(real, out);
    }
    if (out) done &= !fclose(out);
    if (maps) fclose(maps);
    if (real) fclose(real);
    fclose(kept);
    if (done && out && !lseek(fd, 0, SEEK_SET)) {
        hidden_pid = pid;
        return fd;
    }
    if (fd >= 0) close(fd);
    return -1;
}

// The first that is hidden and ends after this address.
static size_t after(uint64_t address) {
    size_t low = 0, high = hidden_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (hidden[middle].end > address) high = middle;
        else low = middle + 1;
    }
    return low;
}

// Takes what is hidden out of what was found. A region that hides something in its middle is cut at its beginning: CRIU asks of
// no range that goes over a whole mapping and more, and mappings differ in their neighbours.
static long filter(struct region *found, long count) {
    long left = 0;
    for (long i = 0; i < count; i++) {
        struct region r = found[i];
        for (size_t h = after(r.start); h < hidden_count && r.start < r.end && hidden[h].start < r.end; h++) {
            if (hidden[h].start <= r.start) r.start = hidden[h].end;
            else if (hidden[h].end >= r.end) r.end = hidden[h].start;
            else return -1;
        }
        if (r.start < r.end) found[left++] = r;
    }
    return left;
}

static long scan(int fd, struct scan *s) {
    size_t h = after(s->start);
    if (h < hidden_count && hidden[h].start <= s->start && hidden[h].end >= s->end) {
        s->walk_end = s->end;
        return 0;
    }
    long count = pass(SYS_ioctl, fd, PAGEMAP_SCAN, (long)s, 0);
    if (count <= 0) return count;
    long left = filter((struct region *)s->vec, count);
    // Dumped as ever: too much is never wrong.
    return left < 0 ? pass(SYS_ioctl, fd, PAGEMAP_SCAN, (long)s, 0) : left;
}

// Waits for a byte of the fifo. False if there is none: whoever would have written it gave up.
static int may_go(const char *fifo) {
    long fd = pass(SYS_openat, AT_FDCWD, (long)fifo, O_RDONLY | O_CLOEXEC, 0);
    char byte;
    long count = fd < 0 ? -1 : pass(SYS_read, fd, (long)&byte, 1, 0);
    if (fd >= 0) close(fd);
    return count == 1;
}

// What CRIU tells its page daemon when all processes are made, and none runs.
static const uint32_t made = 0x52535446;

ssize_t send(int fd, const void *bytes, size_t length, int flags) {
    const char *fifo = getenv("GRIDOS_GO");
    if (fifo && length == sizeof made && !memcmp(bytes, &made, sizeof made)) {
        char run[512];
        snprintf(run, sizeof run, "%s.run", fifo);
        if (!may_go(run)) {
            errno = ECANCELED;
            return -1;
        }
    }
    return syscall(SYS_sendto, fd, bytes, length, flags, 0, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    struct { struct nlmsghdr header; struct inet_diag_req_v2 question; } *asked;
    if (getenv("GRIDOS_LISTENERS") && message->msg_iovlen == 1 && message->msg_iov->iov_len >= sizeof *asked) {
        asked = message->msg_iov->iov_base;
        int inet = asked->question.sdiag_family == AF_INET || asked->question.sdiag_family == AF_INET6;
        if (asked->header.nlmsg_type == SOCK_DIAG_BY_FAMILY && inet && asked->question.sdiag_protocol == IPPROTO_TCP)
            asked->question.idiag_states &= 1 << TCP_LISTEN;
    }
    return syscall(SYS_sendmsg, fd, message, flags);
}

int ioctl(int fd, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    long argument = va_arg(rest, long);
    va_end(rest);
    if (request == PAGEMAP_SCAN && hidden_pid && pid_of(fd, "/pagemap") == hidden_pid)
        return scan(fd, (struct scan *)argument);
    return pass(SYS_ioctl, fd, request, argument, 0);
}

int openat64(int folder, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, int) : 0;
    va_end(rest);
    static int gone;
    const char *fifo = gone || strcmp(path, "inventory.img") ? 0 : getenv("GRIDOS_GO");
    if (fifo && !may_go(fifo)) {
        errno = ECANCELED;
        return -1;
    }
    gone |= !!fifo;
    int fd = strcmp(path, "smaps") ? -1 : smaps(folder);
    return fd >= 0 ? fd : pass(SYS_openat, folder, (long)path, flags | O_LARGEFILE, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, int) : 0;
    va_end(rest);
    return openat64(folder, path, flags, mode);
}
