//! Programs that people run, under load while they move.

use super::*;

/// Each moves three times while it works, in both ways.
fn moved_while_it_works(test: &str, script: &str, programs: &[&str]) {
    moving(test, shared, |grid: &Grid| {
        let installed =
            |program: &&&str| Command::new("which").arg(program).output().unwrap().status.success();
        if let Some(missing) = programs.iter().find(|program| !installed(program)) {
            let _ = writeln!(io::stdout(), "SKIPPED: {missing} is not installed: setup/install test does");
            return;
        }
        let spec = JobSpec::command(["/usr/bin/python3", "-c", &format!("{}{script}", programs::PRELUDE)])
            .cpus(Cpus::from_milli(100))
            .memory(Bytes(512 << 20));
        for mode in [MoveMode::StopAndCopy, MoveMode::Hybrid] {
            let job = begin(grid, 2, spec.clone());
            let mut stopped = Vec::new();
            for to in [3, 1, 2] {
                let before = progress(grid, job);
                until("it goes on", || progress(grid, job) > before + 2);
                stopped.push(stood(&hop_by(grid, 1, job, to, mode)));
            }
            verdict(grid, job, test);
            println!("FIGURE {test}, {mode}: stood still {}", stopped.join(", "));
        }
    });
}

/// How often it said that it goes on.
fn progress(grid: &Grid, job: JobId) -> usize {
    grid.logs(1, job, 0).matches("on\n").count()
}

#[test]
fn a_database_of_sqlite_moves() {
    moved_while_it_works(
        "a_database_of_sqlite_moves",
        r#"
import sqlite3
db = sqlite3.connect('data.db', isolation_level=None)
db.execute('pragma journal_mode=wal')
db.execute('create table t (n integer primary key, text text)')
n = 0; ready()
while not gone():
    db.execute('begin')
    for _ in range(20): db.execute('insert into t values (?, ?)', (n, 'x' * (n % 300))); n += 1
    db.execute('commit')
    check(db.execute('select count(*), max(n) from t').fetchone() == (n, n - 1), n)
    if n % 400 == 0: print('on', flush=True); time.sleep(0.05)
check(db.execute('pragma integrity_check').fetchone() == ('ok',))
db.close()
db = sqlite3.connect('data.db')
check([row[0] for row in db.execute('select n from t order by n')] == list(range(n)))
check(all(len(text) == n % 300 for n, text in db.execute('select * from t')))
print('OK')
"#,
        &[],
    );
}

#[test]
fn a_server_of_redis_moves_with_its_client() {
    moved_while_it_works(
        "a_server_of_redis_moves_with_its_client",
        r#"
import subprocess
server = subprocess.Popen(['redis-server', '--port', '0', '--unixsocket', '/tmp/redis.sock', '--dir', os.getcwd(),
    '--appendonly', 'yes', '--save', '', '--logfile', 'redis.log'])
c = socket.socket(socket.AF_UNIX)
# Its file is there before it listens.
while c.connect_ex('/tmp/redis.sock') != 0: time.sleep(0.01)
f = c.makefile('rb')
def ask(*words):
    c.sendall(b'*%d\r\n' % len(words) + b''.join(b'$%d\r\n%s\r\n' % (len(w), w) for w in words))
    line = f.readline().rstrip(); check(line[:1] in b'+:$', line)
    return f.read(int(line[1:]) + 2)[:-2] if line[:1] == b'$' else line[1:]
while ask(b'PING') != b'PONG': time.sleep(0.01)
n = 0; ready()
while not gone():
    n += 1
    check(ask(b'INCR', b'n') == b'%d' % n)
    key = b'key %d' % (n % 1000); value = b'%d' % n * (n % 50)
    check(ask(b'SET', key, value) == b'OK'); check(ask(b'GET', key) == value)
    if n % 500 == 0: print('on', flush=True); time.sleep(0.02)
check(ask(b'GET', b'n') == b'%d' % n and ask(b'DBSIZE') == b'%d' % (min(n, 1000) + 1))
server.terminate()
check(server.wait() == 0)
print('OK')
"#,
        &["redis-server"],
    );
}

#[test]
fn what_xz_packs_is_the_same_when_it_moves() {
    moved_while_it_works(
        "what_xz_packs_is_the_same_when_it_moves",
        r#"
import subprocess, random, lzma
random.seed(7); words = [bytes(random.choices(b'abcdefgh ', k=random.randrange(3, 12))) for _ in range(4000)]
data = b''.join(random.choices(words, k=400000))
open('in', 'wb').write(data)
whole = subprocess.run(['xz', '-6', '-c', 'in'], stdout=subprocess.PIPE).stdout
rounds = 0; ready()
while not gone() or rounds == 0:
    # One that moves in the middle gives what an unmoved one gave.
    with open('out', 'wb') as out: xz = subprocess.Popen(['xz', '-6', '-c', 'in'], stdout=out)
    while xz.poll() is None: print('on', flush=True); time.sleep(0.2)
    check(xz.returncode == 0 and open('out', 'rb').read() == whole, rounds); rounds += 1
check(lzma.decompress(whole) == data)
print('OK')
"#,
        &["xz"],
    );
}
