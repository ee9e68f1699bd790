//! Files that a task writes to while they are on their way.

use super::*;

/// Writes to its files in every way, as fast as it moves through them, and knows what each has to hold. What is mapped is written
/// without the kernel's noting a time; what it writes last, it wrote just before it stood still.
const WRITER: &str = r#"
import random
rng = random.Random(5)
MIB = 1 << 20
def block(n): return hashlib.sha256(b'%d' % n).digest() * (n % 700 + 1)
model, n = {}, 0
with open('large', 'wb') as file:
    for n in range(64): file.write(block(n) [:1] * MIB)
large = bytearray(open('large', 'rb').read())
mapped = open('mapped', 'w+b'); mapped.truncate(4 * MIB); view = mmap.mmap(mapped.fileno(), 4 * MIB)
# Every page is dirty from here on, and says nothing of what is written to it.
shadow = bytearray(block(0) * (4 * MIB // 32)); view[:] = bytes(shadow)
os.makedirs('deep/er')
for k in range(300): model['deep/f%d' % k] = b'%d' % k
for name, content in model.items(): open(name, 'wb').write(content)
log = open('log', 'ab', buffering=0); logged = hashlib.sha256()
os.setxattr('large', 'user.note', b'kept'); os.setxattr('.', 'user.note', b'here')
os.chmod('deep/f1', 0o444); os.utime('deep/f1', ns=(7, 1234567890123456789))
os.link('deep/f2', 'deep/er/twin')
def look(whole):
    with open('log', 'rb') as file: check(hashlib.sha256(file.read()).digest() == logged.digest(), 'log')
    check(mapped.seek(0) == 0 and mapped.read() == shadow == view[:], 'mapped')
    names = {os.path.join(at, name)[2:] for at, _, names in os.walk('./deep') for name in names}
    check(names == set(model) | {'deep/er/twin'}, names ^ set(model))
    for name in model if whole else rng.sample(sorted(model), 5):
        check(open(name, 'rb').read() == model[name], name)
    check(os.stat('deep/er/twin').st_ino == os.stat('deep/f2').st_ino, 'twin')
    seen = os.stat('deep/f1')
    check(seen.st_mode & 0o7777 == 0o444 and seen.st_mtime_ns == 1234567890123456789, seen)
    check(os.getxattr('large', 'user.note') == b'kept' and os.getxattr('.', 'user.note') == b'here', 'attributes')
    if whole: check(open('large', 'rb').read() == large, 'large')
def step():
    global n
    n += 1
    at = rng.randrange(4 * MIB - 2048); piece = block(n)[:2048]
    view[at:at + len(piece)] = piece; shadow[at:at + len(piece)] = piece
    log.write(block(n)); logged.update(block(n))
    with open('large', 'r+b') as file:
        at = rng.randrange(63 * MIB); file.seek(at); file.write(block(n)); large[at:at + len(block(n))] = block(n)
    kept = [name for name in model if name not in ('deep/f1', 'deep/f2')]
    name, other = rng.choice(kept), 'deep/n%d' % (n % 50)
    what = n % 4
    if what == 0: os.rename(name, other); model[other] = model.pop(name)
    elif what == 1: open(other, 'wb').write(block(n)); model[other] = block(n)
    elif what == 2: os.truncate(name, 3); model[name] = (model[name] + bytes(3))[:3]
    elif len(kept) > 100: os.unlink(name); del model[name]
ready()
while not gone():
    step(); time.sleep(0.002)
    if n % 50 == 0: look(False)
    if n % 100 == 0: print(n, flush=True)
look(True)
print('OK')
"#;

#[test]
fn files_that_are_written_to_move_while_they_are() {
    moving("files_that_are_written_to_move_while_they_are", shared, |grid: &Grid| {
        let script = format!("{}{WRITER}", programs::PRELUDE);
        let spec = JobSpec::command(["/usr/bin/python3", "-c", &script]);
        let job = begin(grid, 2, spec.cpus(Cpus::from_milli(500)).memory(Bytes(512 << 20)));
        let steps = || grid.logs(1, job, 0).lines().filter_map(|line| line.parse::<u64>().ok()).max();
        for to in [3, 1, 3, 2, 1] {
            let before = steps();
            until("it writes", || steps() > before);
            let moved = hop_by(grid, 1, job, to, MoveMode::Hybrid);
            println!("FIGURE 70 MiB of files, hybrid: stood still {}", stood(&moved));
        }
        verdict(grid, job, "writer");
    });
}
