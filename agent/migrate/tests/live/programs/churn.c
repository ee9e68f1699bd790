#include "verdict.h"
// Four threads that allocate, map, discard and move memory, and look at every value before they let it go; the main
// thread forks children that look at what they inherited, and discard and move their part.
enum { SLOTS = 48, PAGE = 4096 };
static volatile int stop;
static void put(uint64_t *p, size_t n, uint64_t tag) { for (size_t i = 0; i < n / 8; i += 32) p[i] = mix(tag + i); }
static int has(uint64_t *p, size_t n, uint64_t tag) {
    for (size_t i = 0; i < n / 8; i += 32) if (p[i] != mix(tag + i)) return 0;
    return 1;
}
static uint64_t *map(size_t n) {
    return mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
static void *churn(void *arg) {
    long kind = (long)arg;
    unsigned seed = kind * 77 + 1;
    uint64_t *p[SLOTS] = {0}, tag[SLOTS] = {0};
    size_t size[SLOTS] = {0};
    while (!stop) {
        int k = rand_r(&seed) % SLOTS;
        uint64_t next = rand_r(&seed);
        if (p[k] && !has(p[k], size[k], tag[k])) wrong(kind == 0 ? "heap" : kind == 1 ? "map" : kind == 2 ? "discard" : "move");
        if (kind == 0) {
            free(p[k]);
            size[k] = 4096 + (rand_r(&seed) % 300000 & ~7);
            p[k] = malloc(size[k]);
        } else if (kind == 1) {
            if (p[k]) munmap(p[k], size[k]);
            size[k] = PAGE * (1 + rand_r(&seed) % 80);
            p[k] = map(size[k]);
            if (p[k][0] || p[k][size[k] / 8 - 1]) wrong("fresh");
        } else if (kind == 2) {
            if (!p[k]) p[k] = map(size[k] = 64 * PAGE);
            madvise(p[k] + 8 * PAGE / 8, 16 * PAGE, MADV_DONTNEED);
            for (int i = 8; i < 24; i++) if (p[k][i * PAGE / 8]) wrong("given back");
        } else if (p[k]) {
            size_t to = PAGE * (32 + rand_r(&seed) % 32), low = to < size[k] ? to : size[k];
            p[k] = mremap(p[k], size[k], to, MREMAP_MAYMOVE);
            if (!has(p[k], low, tag[k])) wrong("moved");
            size[k] = to;
        } else p[k] = map(size[k] = 32 * PAGE);
        put(p[k], size[k], tag[k] = next);
        usleep(300);
    }
    return 0;
}
int main(int argc, char **argv) {
    start(argv);
    pthread_t t[4];
    for (long i = 0; i < 4; i++) pthread_create(&t[i], 0, churn, (void *)i);
    size_t n = 32 << 20;
    uint64_t *all = map(n);
    put(all, n, 5);
    say("ready\n");
    for (uint64_t round = 0; going_on(); round++) {
        pid_t child = fork();
        if (!child) {
            int fault = !has(all, n / 4, 5);
            munmap(all, 64 * PAGE);
            uint64_t *part = all + n / 16;
            madvise(part, 64 * PAGE, MADV_DONTNEED);
            for (int i = 0; i < 64; i++) fault |= part[i * PAGE / 8] != 0;
            uint64_t *last = all + n / 8 - 64 * PAGE / 8;
            uint64_t first = mix(5 + (last - all));
            last = mremap(last, 64 * PAGE, 128 * PAGE, MREMAP_MAYMOVE);
            fault |= last[0] != first;
            _exit(fault);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status) wrong("child");
        usleep(3000);
    }
    if (!has(all, n, 5)) wrong("whole");
    stop = 1;
    for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
    return finish();
}
