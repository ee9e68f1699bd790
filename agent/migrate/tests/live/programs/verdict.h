// What all programs share: they run until there is a file LOG.go, and write OK or what was wrong to LOG.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char go_path[512];
static int log_fd;
static volatile int bad;

static void start(char **argv) {
    // What the test's own parents left open.
    close_range(3, ~0U, 0);
    snprintf(go_path, sizeof go_path, "%s.go", argv[1]);
    log_fd = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0600);
}
static void say(const char *text) { if (write(log_fd, text, strlen(text)) < 0) _exit(9); }
static int going_on(void) { return access(go_path, F_OK) != 0; }
static void wrong(const char *what) {
    char line[128];
    snprintf(line, sizeof line, "BAD %s in %d\n", what, (int)getpid());
    if (!bad++) say(line);
}
static int finish(void) {
    say(bad ? "" : "OK\n");
    return bad != 0;
}
static double now(void) {
    struct timespec t;
    // CRIU keeps the monotonic clock where it was.
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}
static inline uint64_t mix(uint64_t x) {
    x ^= x >> 33; x *= 0xff51afd7ed558ccdULL; x ^= x >> 33; x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ x >> 33;
}
