#include "verdict.h"
// Eight threads pass the turn round under a lock; each has a count of its own in thread-local memory.
enum { N = 8 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
static long total, whose, own[N];
static int stop;
static __thread long mine;
static void *body(void *arg) {
    long me = (long)arg;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (whose != me && !stop) pthread_cond_wait(&turn, &lock);
        if (stop) { pthread_mutex_unlock(&lock); break; }
        total++; mine++; own[me]++;
        if (mine != own[me]) wrong("turn");
        whose = (me + 1) % N;
        pthread_cond_broadcast(&turn);
        pthread_mutex_unlock(&lock);
    }
    return (void *)mine;
}
int main(int argc, char **argv) {
    start(argv);
    pthread_t t[N];
    for (long i = 0; i < N; i++) pthread_create(&t[i], 0, body, (void *)i);
    say("ready\n");
    while (going_on()) usleep(1000);
    pthread_mutex_lock(&lock); stop = 1; pthread_cond_broadcast(&turn); pthread_mutex_unlock(&lock);
    long sum = 0;
    for (int i = 0; i < N; i++) { void *r; pthread_join(t[i], &r); sum += (long)r; }
    if (sum != total) wrong("total");
    return finish();
}
