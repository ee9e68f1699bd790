#include "verdict.h"
// Forks all the time: most children live shortly, every eighth stays to the end. All share 48 MiB that they inherited, and
// write their own pages into it.
int main(int argc, char **argv) {
    start(argv);
    size_t n = 48 << 20, words = n / 8;
    uint64_t *p = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < words; i += 64) p[i] = mix(i);
    say("ready\n");
    int staying = 0, status;
    for (uint64_t round = 1; going_on(); round++) {
        int stays = round % 8 == 0 && staying < 12;
        pid_t child = fork();
        if (!child) {
            int fault = 0;
            for (size_t i = 0; i < words; i += 4096 * 8) p[i] ^= round;
            if (stays) while (going_on()) usleep(2000);
            for (size_t i = 0; i < words; i += 64)
                fault |= p[i] != (i % (4096 * 8) ? mix(i) : (mix(i) ^ round));
            _exit(fault);
        }
        if (stays) staying++;
        else if (waitpid(child, &status, 0) != child || status) wrong("short child");
        size_t mine = mix(round) % words & ~63UL;
        if (p[mine] != mix(mine)) wrong("parent");
        p[mine] = 1; p[mine] = mix(mine);
        usleep(2000);
    }
    while (wait(&status) > 0) if (status) wrong("staying child");
    return finish();
}
