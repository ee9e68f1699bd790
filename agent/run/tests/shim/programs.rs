//! What is checkpointed: each program prints `ready` when its state is worth it, goes on until there is a file
//! `/tmp/go`, and then looks by itself whether all is as it has to be, and prints `OK` and ends with 0.

/// One row of the matrix.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// As the shell takes it; `THREADS` stands for the program made of [`THREADS`].
    pub(crate) script: String,
    /// MiB that it may use.
    pub(crate) memory: u64,
}

/// Eight threads that pass a counter on under locks; each counts its own turns.
pub(crate) const THREADS: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
enum { N = 8 };
static pthread_mutex_t lock[N];
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t round_lock = PTHREAD_MUTEX_INITIALIZER;
static long total, own[N], whose;
static __thread long mine;
static int stop;
static void *body(void *arg) {
    long me = (long)arg;
    for (;;) {
        pthread_mutex_lock(&round_lock);
        while (whose != me && !stop) pthread_cond_wait(&turn, &round_lock);
        if (stop) { pthread_cond_broadcast(&turn); pthread_mutex_unlock(&round_lock); break; }
        total++; mine++; whose = (me + 1) % N;
        pthread_cond_broadcast(&turn);
        pthread_mutex_unlock(&round_lock);
        pthread_mutex_lock(&lock[me]); own[me]++; pthread_mutex_unlock(&lock[me]);
    }
    return (void *)mine;
}
int main(void) {
    pthread_t t[N];
    for (long i = 0; i < N; i++) { pthread_mutex_init(&lock[i], 0); pthread_create(&t[i], 0, body, (void *)i); }
    puts("ready"); fflush(stdout);
    while (access("/tmp/go", F_OK)) usleep(1000);
    long before = total;
    while (total < before + 1000) usleep(1000);
    pthread_mutex_lock(&round_lock); stop = 1; pthread_cond_broadcast(&turn); pthread_mutex_unlock(&round_lock);
    long sum = 0, locals = 0;
    for (int i = 0; i < N; i++) { void *m; pthread_join(t[i], &m); locals += (long)m; sum += own[i]; }
    if (sum != total || locals != total || total < 1000) { printf("%ld %ld %ld\n", sum, locals, total); return 1; }
    puts("OK");
    return 0;
}
"#;

/// What every python program begins with.
pub(crate) const PRELUDE: &str = r#"
import os, sys, time, threading, hashlib, mmap, signal, socket, queue, select, struct
def ready(): print('ready', flush=True)
def gone(): return os.path.exists('/tmp/go')
def wait():
    # Slow enough that fifty of them leave the processors to those who dump them.
    while not gone(): time.sleep(0.02)
def check(what, *seen):
    if not what: print('WRONG', *seen, flush=True); os._exit(1)
"#;

fn python(name: &'static str, memory: u64, body: &str) -> Program {
    Program {
        name,
        script: format!("exec /usr/bin/python3 -c \"$(cat <<'END'\n{PRELUDE}{body}\nEND\n)\""),
        memory,
    }
}

fn shell(name: &'static str, script: &str) -> Program {
    Program { name, script: script.to_owned(), memory: 64 }
}

/// One with so many MiB.
pub(crate) fn memory(mib: u64) -> Program {
    python("memory", mib + 144, &MEMORY.replace("MIB", &mib.to_string()))
}

/// All rows but the terminal, which has its own test.
pub(crate) fn all() -> Vec<Program> {
    vec![
        shell(
            "counter",
            "i=0; while [ ! -e /tmp/go ]; do i=$((i+1)); echo $i; [ $i != 5 ] || echo ready; sleep 0.005; done; \
             echo $((i+1)); echo OK",
        ),
        Program { name: "threads", script: "exec ./threads".into(), memory: 64 },
        shell(
            "pipeline",
            "mkfifo /tmp/f; cat /tmp/f > /tmp/from-fifo & echo ready; i=0; \
             while [ ! -e /tmp/go ]; do i=$((i+1)); echo $i; [ $((i % 500)) -ne 0 ] || sleep 0.01; done | \
             tee /tmp/f /tmp/copy | cat | sha256sum > /tmp/sum; wait; \
             sha256sum < /tmp/copy | cmp - /tmp/sum && cmp /tmp/copy /tmp/from-fifo && \
             [ $(wc -l < /tmp/copy) = $(tail -n 1 /tmp/copy) ] && echo OK",
        ),
        python("tree", 400, TREE),
        python("python", 128, PYTHON),
        python("files", 64, FILES),
        python("deleted", 64, DELETED),
        python("sockets", 64, SOCKETS),
        python("timers", 64, TIMERS),
        python("zombies", 64, ZOMBIES),
        memory(256),
    ]
}

/// Fifty processes: seven children with six of their own each. Each knows its parent, group and session by number.
const TREE: &str = r#"
def know(): return os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0)
def leaf(n, parent):
    me = know(); check(me[1] == parent, me, parent); wait(); check(know() == me, me, know()); os._exit(n)
def branch(n, parent):
    if n % 2: os.setsid()
    me = know(); mine = {}
    for k in range(6):
        pid = os.fork()
        if pid == 0: leaf(10 * n + k, me[0])
        mine[pid] = 10 * n + k
    os.write(w, b'x')
    wait()
    for pid in list(mine): check(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == mine[pid], pid)
    check(know() == me, me, know()); os._exit(n)
r, w = os.pipe()
me = know(); mine = {}
for n in range(1, 8):
    pid = os.fork()
    if pid == 0: branch(n, me[0])
    mine[pid] = n
seen = b''
while len(seen) < 7: seen += os.read(r, 7)
ready(); wait()
for pid in mine: check(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == mine[pid], pid)
check(know() == me, me, know())
print('OK')
"#;

/// Threads of an interpreter: items pass through bounded queues, and none is lost or doubled.
const PYTHON: &str = r#"
a, b = queue.Queue(50), queue.Queue(50)
made = [0] * 3; lock = threading.Lock(); local = threading.local(); stop = False
def make(k):
    local.count = 0
    while not stop:
        a.put((k, local.count)); local.count += 1
        with lock: made[k] += 1
    check(local.count == made[k]); a.put(None)
def work():
    ends = 0
    while ends < 3:
        x = a.get()
        if x is None: ends += 1
        else: b.put(x)
    b.put(None)
next_of = [0] * 3
def take():
    while True:
        x = b.get()
        if x is None: return
        check(x[1] == next_of[x[0]], x, next_of); next_of[x[0]] += 1
ts = [threading.Thread(target=make, args=(k,)) for k in range(3)] + [threading.Thread(target=f) for f in (work, take)]
for t in ts: t.start()
while min(made) < 100: time.sleep(0.001)
ready(); wait()
before = sum(next_of)
while sum(next_of) < before + 1000: time.sleep(0.001)
stop = True
for t in ts: t.join()
check(next_of == made, next_of, made)
print('OK')
"#;

/// A file that grows, one that is read at an offset, one that is mapped shared, one mapped private.
const FILES: &str = r#"
out = open('grows', 'ab', buffering=0); n = 0; folder = os.getcwd()
data = bytes(range(256)) * 4096
open('read', 'wb').write(data); reader = open('read', 'rb', buffering=0); reader.seek(12345)
open('shared', 'wb').write(bytes(1 << 20)); f = open('shared', 'r+b'); shared = mmap.mmap(f.fileno(), 1 << 20)
private = mmap.mmap(reader.fileno(), len(data), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
private[0:5] = b'other'
shm = open('/dev/shm/part', 'w+b'); shm.write(b'shm' * 1000); shm.flush(); shm.seek(3)
at = reader.tell(); said = False
while not gone():
    out.write(b'%d\n' % n); shared[8 * (n % 131072):8 * (n % 131072) + 8] = struct.pack('<Q', n + 1); n += 1
    piece = reader.read(7)
    check(piece == data[at:at + len(piece)], at, piece); at += len(piece)
    if len(piece) < 7: reader.seek(0); at = 0
    if n == 100: ready()
    time.sleep(0.0005)
lines = open('grows').read().split()
check(lines == [str(i) for i in range(n)], len(lines), n)
check(out.tell() == os.path.getsize('grows'))
disk = open('shared', 'rb').read()
check(disk == shared[:])
for i in range(max(0, n - 131072), n): check(struct.unpack_from('<Q', disk, 8 * (i % 131072))[0] == i + 1, i)
check(private[0:5] == b'other' and private[5:] == data[5:] and open('read', 'rb').read() == data)
check(shm.read() == b'shm' * 999 and os.getcwd() == folder)
print('OK')
"#;

/// Files without a name, without one of their names, and a removed folder's.
const DELETED: &str = r#"
f = open('gone', 'w+b'); f.write(os.urandom(3 << 20)); f.flush(); f.seek(0)
want = hashlib.sha256(f.read()).hexdigest(); f.seek(1000)
os.unlink('gone')
other = os.open('gone-too', os.O_RDWR | os.O_CREAT); os.write(other, b'abc'); os.unlink('gone-too')
kept = open('name', 'w+b'); kept.write(b'kept'); kept.flush(); os.link('name', 'other'); os.unlink('name')
ready(); wait()
check(f.tell() == 1000); f.seek(0); check(hashlib.sha256(f.read()).hexdigest() == want)
os.lseek(other, 0, 0); check(os.read(other, 9) == b'abc')
kept.seek(0); check(kept.read() == b'kept' and os.path.samestat(os.fstat(kept.fileno()), os.stat('other')))
check(os.fstat(f.fileno()).st_nlink == 0)
check(sorted(os.listdir('.')) == ['other'], os.listdir('.'))
print('OK')
"#;

/// A pair with bytes under way, datagrams, a listener with a name and a client of it, a descriptor in a message.
const SOCKETS: &str = r#"
a, b = socket.socketpair(); a.send(b'under way')
c, d = socket.socketpair(type=socket.SOCK_DGRAM); c.send(b'one'); c.send(b'two')
l = socket.socket(socket.AF_UNIX); l.bind('/tmp/named'); l.listen()
x = socket.socket(socket.AF_UNIX); x.connect('/tmp/named'); y, _ = l.accept(); x.send(b'for y')
ab = socket.socket(socket.AF_UNIX); ab.bind('\0abstract-%d' % os.getuid()); ab.listen()
e = select.epoll(); e.register(b, select.EPOLLIN); e.register(d, select.EPOLLIN)
n = 0; s, r = socket.socketpair(); pid = os.fork()
if pid == 0:
    s.close()
    while True:
        m = r.recv(8)
        if not m: os._exit(0)
        r.send(m)
r.close(); said = False
while not gone():
    m = struct.pack('<Q', n); s.send(m); check(s.recv(8) == m); n += 1
    if n == 100: ready()
check(sorted(fd for fd, _ in e.poll(0)) == sorted([b.fileno(), d.fileno()]))
check(b.recv(99) == b'under way' and d.recv(99) == b'one' and d.recv(99) == b'two' and y.recv(99) == b'for y')
z = socket.socket(socket.AF_UNIX); z.connect('/tmp/named'); w, _ = l.accept(); z.send(b'new'); check(w.recv(9) == b'new')
z = socket.socket(socket.AF_UNIX); z.connect('\0abstract-%d' % os.getuid()); w, _ = ab.accept()
s.close(); check(os.waitpid(pid, 0)[1] == 0 and n > 100)
print('OK')
"#;

/// Interval timers go on, alarms keep their time, a pending signal stays pending, handlers and masks stay; whoever restores is
/// never the parent, whose death would be a signal.
const TIMERS: &str = r#"
import ctypes
ticks = 0; usr = []; parent = os.getppid()
PR_SET_PDEATHSIG = 1; check(ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) == 0)
def tick(*_):
    global ticks; ticks += 1; check(os.getppid() == parent, os.getppid())
signal.signal(signal.SIGALRM, tick); signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
signal.signal(signal.SIGUSR1, lambda *_: usr.append(1)); signal.signal(signal.SIGUSR2, signal.SIG_IGN)
signal.signal(signal.SIGPROF, lambda *_: None); signal.setitimer(signal.ITIMER_PROF, 1000, 7)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN])
os.kill(os.getpid(), signal.SIGUSR1); os.kill(os.getpid(), signal.SIGRTMIN); os.kill(os.getpid(), signal.SIGRTMIN)
while ticks < 5: signal.pause()
start = time.monotonic(); wall = time.time()
ready(); wait()
check(0 <= time.monotonic() - start < 60 and 0 <= time.time() - wall < 60)
before = ticks
while ticks < before + 20: signal.pause()
check(usr == [] and signal.sigpending() == {signal.SIGUSR1, signal.SIGRTMIN}, signal.sigpending())
check(signal.sigtimedwait([signal.SIGRTMIN], 0) and signal.sigtimedwait([signal.SIGRTMIN], 0))
check(signal.sigtimedwait([signal.SIGRTMIN], 0) is None)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1]); check(usr == [1], usr)
os.kill(os.getpid(), signal.SIGUSR2)
left, every = signal.getitimer(signal.ITIMER_PROF); check(900 < left < 1001 and abs(every - 7) < 0.1, left, every)
# At its end the interpreter takes its handlers away.
signal.setitimer(signal.ITIMER_REAL, 0)
print('OK')
"#;

/// Children that ended, and were not waited for.
const ZOMBIES: &str = r#"
pids = {}
for n in range(5):
    pid = os.fork()
    if pid == 0: os._exit(n)
    pids[pid] = n
pid = os.fork()
if pid == 0: signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGTERM); wait()
state = lambda p: open('/proc/%d/stat' % p).read().rsplit(')', 1)[1].split()[0]
while any(state(p) != 'Z' for p in list(pids) + [pid]): time.sleep(0.001)
ready(); wait()
check(all(state(p) == 'Z' for p in list(pids) + [pid]))
for p in pids: check(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) == pids[p])
check(os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM)
print('OK')
"#;

/// So many MiB: half of it never the same twice, with holes, and an anonymous mapping shared with a child.
const MEMORY: &str = r#"
big = mmap.mmap(-1, MIB << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
want = []
for m in range(MIB):
    block = bytes([m % 256]) * (1 << 20) if m % 2 else os.urandom(1 << 20)
    big[m << 20:(m + 1) << 20] = block; want.append(hashlib.blake2b(block).digest())
both = mmap.mmap(-1, 1 << 20)
pid = os.fork()
if pid == 0:
    n = 0
    while not gone(): both[0:8] = struct.pack('<Q', n); n += 1
    both[8:12] = b'done'; os._exit(0)
while struct.unpack('<Q', both[0:8])[0] < 100: time.sleep(0.001)
ready(); wait()
for m in range(MIB): check(hashlib.blake2b(big[m << 20:(m + 1) << 20]).digest() == want[m], m)
check(os.waitpid(pid, 0)[1] == 0 and both[8:12] == b'done')
print('OK')
"#;

/// A terminal: what is typed after the restore arrives, and Ctrl-C does.
pub(crate) const TERMINAL: &str = r#"exec /usr/bin/python3 -c "$(cat <<'END'
import os, sys, signal, termios, time
def check(what, *seen):
    if not what: print('WRONG', *seen, flush=True); os._exit(1)
hit = []
signal.signal(signal.SIGINT, lambda *_: hit.append(1))
mode = termios.tcgetattr(0); mode[3] &= ~termios.ECHO; termios.tcsetattr(0, termios.TCSANOW, mode)
first = input()
print('ready', first, flush=True)
check(input() == 'after')
check(os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgid(0))
check(tuple(os.get_terminal_size(0)) == (77, 33), os.get_terminal_size(0))
check(termios.tcgetattr(0)[3] == mode[3])
print('ctrl-c', flush=True)
while not hit: time.sleep(0.001)
print('OK', flush=True)
END
)""#;
