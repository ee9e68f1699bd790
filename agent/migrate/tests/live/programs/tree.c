#include "verdict.h"
// Twenty processes, three deep, each with memory of its own that it changes and looks at; each tells its parent by its status.
enum { N = 20 };
static int work(uint64_t me) {
    size_t n = 2 << 20;
    uint64_t *p = malloc(n), step = 0;
    for (size_t i = 0; i < n / 8; i++) p[i] = mix(me * 1000003 + i);
    while (going_on()) {
        size_t i = mix(++step) % (n / 8);
        if (p[i] != mix(me * 1000003 + i)) wrong("value");
        p[i] = 0; p[i] = mix(me * 1000003 + i);
        usleep(500);
    }
    for (size_t i = 0; i < n / 8; i++) if (p[i] != mix(me * 1000003 + i)) { wrong("last look"); break; }
    return bad != 0;
}
int main(int argc, char **argv) {
    start(argv);
    for (int branch = 0; branch < 3; branch++) {
        if (fork()) continue;
        for (int i = 0; i < (branch ? 5 : 6); i++) if (!fork()) _exit(work(100 * branch + i));
        int failed = work(1000 + branch), status;
        while (wait(&status) > 0) failed |= status != 0;
        _exit(failed);
    }
    say("ready\n");
    work(5000);
    int status;
    while (wait(&status) > 0) if (status) wrong("child");
    return finish();
}
