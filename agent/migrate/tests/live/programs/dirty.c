#include "verdict.h"
// dirty LOG MIB MB_PER_SECOND [PROCESSES]: page I holds what follows from its generation, which is kept elsewhere. Tells the longest
// gap in its own clock; that of the process that stood still the longest, where each of so many has such memory.
static volatile int stop;
static volatile double gap;
static struct { volatile double gap; volatile int ready; } *each;
static void *watch(void *unused) {
    double last = now();
    while (!stop) {
        double next = now();
        if (next - last > gap) gap = next - last;
        last = next;
        usleep(200);
    }
    return unused;
}
int main(int argc, char **argv) {
    start(argv);
    int processes = argc > 4 ? atoi(argv[4]) : 1, me = 0;
    each = mmap(0, processes * sizeof *each, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int n = 1; n < processes && !me; n++) if (!fork()) me = n;
    size_t pages = atol(argv[2]) << 8, rate = atol(argv[3]) * 1000000 / 4096;
    uint64_t *p = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *generation = calloc(pages, 4);
    for (size_t i = 0; i < pages; i++) for (int w = 0; w < 512; w += 16) p[i * 512 + w] = mix(i * 512 + w);
    pthread_t t;
    each[me].ready = 1;
    if (!me) {
        for (int n = 1; n < processes; n++) while (!each[n].ready) usleep(1000);
        say("ready\n");
    }
    usleep(50000);
    pthread_create(&t, 0, watch, 0);
    double begin = now();
    size_t done = 0, at = 0;
    while (going_on()) {
        size_t due = (now() - begin) * rate;
        // What was missed in a gap is not made up for.
        if (due > done + rate / 10) { begin = now() - (double)done / rate; due = done; }
        for (; done < due; done++) {
            size_t i = mix(at++) % pages;
            for (int w = 0; w < 512; w += 16) if (p[i * 512 + w] != mix(i * 512 + w + ((uint64_t)generation[i] << 40))) { wrong("page"); break; }
            generation[i]++;
            for (int w = 0; w < 512; w += 16) p[i * 512 + w] = mix(i * 512 + w + ((uint64_t)generation[i] << 40));
        }
        usleep(500);
    }
    stop = 1;
    pthread_join(t, 0);
    each[me].gap = gap;
    for (size_t i = 0; i < pages; i++)
        for (int w = 0; w < 512; w += 16)
            if (p[i * 512 + w] != mix(i * 512 + w + ((uint64_t)generation[i] << 40))) { wrong("whole"); i = pages - 1; break; }
    if (me) _exit(bad != 0);
    int status;
    while (wait(&status) > 0) if (status) wrong("child");
    double longest = 0;
    for (int n = 0; n < processes; n++) if (each[n].gap > longest) longest = each[n].gap;
    char line[64];
    snprintf(line, sizeof line, "gap %.3f ms\n", longest * 1e3);
    say(line);
    return finish();
}
