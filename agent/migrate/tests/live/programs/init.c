// The first process of a namespace: reaps.
#include <signal.h>
#include <sys/wait.h>
int main(void) {
    sigset_t set;
    int signal;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, 0);
    for (;;) {
        while (waitpid(-1, 0, WNOHANG) > 0) {}
        sigwait(&set, &signal);
    }
}
