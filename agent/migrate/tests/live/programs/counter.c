#include "verdict.h"
// Three numbers that have to stay in step, one in a register, one on the stack, one on the heap.
int main(int argc, char **argv) {
    start(argv);
    volatile uint64_t *heap = calloc(1, 8);
    volatile uint64_t stack = 0;
    say("ready\n");
    for (uint64_t i = 1;; i++) {
        stack++;
        ++*heap;
        if (stack != i || *heap != i) wrong("count");
        if (i % 1000 == 0) { usleep(100); if (!going_on()) break; }
    }
    return finish();
}
