// holds MIB: memory of which each page has what follows from its number and from how often it was written, which is kept
// elsewhere. It writes to two MiB of it for some seconds, then to the next, until there is a file /tmp/go; then it looks at all of
// it, and says OK, or what is wrong. It also tells the longest time in which it did not run. The same with the blocks of a file.
//
// So what it wrote to during one round is not what it writes to during the next. It is a huge page, which the kernel notes as a
// whole.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

// Pages of a MiB; bytes of a huge page, its pages, and for how many seconds it is written to.
#define MIB 256
#define HUGE (2 << 20)
#define MANY 512
#define LONG 8

// Blocks of the file.
#define BLOCKS (8 * MIB)

static uint64_t *memory;
static uint32_t *generation, written[BLOCKS];
static int file;

static uint64_t mix(uint64_t x) {
    x ^= x >> 33; x *= 0xff51afd7ed558ccdULL; x ^= x >> 33; x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ x >> 33;
}
static double now(void) {
    struct timespec t;
    // CRIU keeps the monotonic clock where it was.
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}
static uint64_t word(size_t page, int at) { return mix(page * 512 + at + ((uint64_t)generation[page] << 40)); }
static void fill(size_t page) { for (int at = 0; at < 512; at += 8) memory[page * 512 + at] = word(page, at); }
static void look(size_t page) {
    for (int at = 0; at < 512; at += 8)
        if (memory[page * 512 + at] != word(page, at)) {
            printf("BAD page %zu, written %u times\n", page, generation[page]);
            exit(1);
        }
}
static void rewrite(size_t page) { look(page); generation[page]++; fill(page); }

static void block(uint64_t *block, size_t at) {
    for (int i = 0; i < 512; i++) block[i] = mix(~(at * 512 + i) + ((uint64_t)written[at] << 40));
}
static void write_block(size_t at) {
    uint64_t what[512];
    written[at]++;
    block(what, at);
    if (pwrite(file, what, 4096, at * 4096) != 4096) { printf("BAD write\n"); exit(1); }
}
static void look_at_block(size_t at) {
    uint64_t is[512], has[512];
    block(has, at);
    if (pread(file, is, 4096, at * 4096) != 4096 || memcmp(is, has, 4096)) {
        printf("BAD block %zu, written %u times\n", at, written[at]);
        exit(1);
    }
}

int main(int argc, char **argv) {
    size_t pages = (argc > 1 ? atol(argv[1]) : 4) * MIB, turns = 0;
    memory = mmap(0, pages * 4096 + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory = (uint64_t *)(((uintptr_t)memory + HUGE - 1) / HUGE * HUGE);
    generation = calloc(pages, sizeof *generation);
    for (size_t page = 0; page < pages; page++) fill(page);
    file = open("blocks", O_RDWR | O_CREAT, 0600);
    for (size_t at = 0; at < BLOCKS; at++) write_block(at);
    setlinebuf(stdout);
    printf("ready\n");
    double last = now(), gap = 0;
    for (; access("/tmp/go", F_OK) != 0; turns++) {
        size_t first = (size_t)now() / LONG % (pages / MANY) * MANY;
        for (int i = 0; i < 4; i++) rewrite(first + mix(turns * 4 + i) % MANY);
        write_block(mix(turns) % BLOCKS);
        usleep(5000);
        double next = now();
        if (next - last > gap) gap = next - last;
        last = next;
    }
    for (size_t page = 0; page < pages; page++) look(page);
    for (size_t at = 0; at < BLOCKS; at++) look_at_block(at);
    printf("turns %zu, gap %.0f ms\nOK\n", turns, gap * 1e3);
    return 0;
}
