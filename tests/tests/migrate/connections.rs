//! Connections of tasks with `--net grid` live through moves, and not a byte of them is lost.
//!
//! Both ends of a connection send as fast as they are read, and know by a calculation what is to come: they compare every byte.

use libgrid::spec::Net;

use super::*;

/// What both ends do with a connection: `send` until told, `receive` until the other end has no more to say.
const STREAM: &str = r#"
SIZE = 4096
def block(who, n): return hashlib.sha256(b'%s %d' % (who, n)).digest() * (SIZE // 32)
def send(c, who, until, out):
    n = 0
    while not until(): c.sendall(block(who, n)); n += 1; time.sleep(0.001)
    c.shutdown(socket.SHUT_WR); out['sent'] = n
def receive(c, who, out):
    f = c.makefile('rb', buffering=1 << 16); n = 0
    while True:
        b = f.read(SIZE)
        if not b: break
        check(b == block(who, n), 'block', n, len(b)); n += 1; out['came'] = n
    out['end'] = True
"#;

/// Takes connections; ends when it is told and each has come to its end.
const SERVER: &str = r#"
l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind((os.environ['GRIDOS_ADDRESS'], 7000)); l.listen(); l.settimeout(0.05); all = []
def serve(c):
    c.settimeout(None); out = {'came': 0}; name = c.makefile('rb', buffering=0).readline().strip()
    r = threading.Thread(target=receive, args=(c, name, out)); r.start()
    send(c, b'server', lambda: 'end' in out, out); r.join()
    print('served', name.decode(), 'came', out['came'], 'sent', out['sent'], flush=True)
ready()
while not gone():
    try: c, _ = l.accept()
    except TimeoutError: continue
    t = threading.Thread(target=serve, args=(c,)); t.start(); all.append(t)
for t in all: t.join()
print('OK')
"#;

/// Connects to a server, by name; ends when its file `GO` is there.
const CLIENT: &str = r#"
def client(address, name, go):
    c = socket.create_connection((address, 7000)); c.sendall(name + b'\n'); out = {'came': 0}
    r = threading.Thread(target=receive, args=(c, b'server', out)); r.start()
    def until():
        if out['came'] >= said[0] + 50: said[0] = out['came']; print('flows', said[0], flush=True); said[0] < 50 and ready()
        return os.path.exists(go)
    said = [-50]; send(c, name, until, out); r.join()
    print('client', name.decode(), 'came', out['came'], 'sent', out['sent'], flush=True)
    print('OK')
"#;

fn script(body: &str) -> String {
    format!("{}{STREAM}{body}", programs::PRELUDE)
}

fn python(body: &str, args: &[&str]) -> JobSpec {
    let script = script(body);
    let words = ["/usr/bin/python3", "-c", &script].into_iter().chain(args.iter().copied());
    JobSpec::command(words).cpus(Cpus::from_milli(500)).memory(Bytes(128 << 20)).net(Net::Grid)
}

/// A row of the matrix: a connection of two of its threads, and one that nobody reads from while it moves.
pub(crate) fn row() -> Program {
    let body = r#"
l = socket.socket(); l.bind((os.environ['GRIDOS_ADDRESS'], 7001)); l.listen()
a = socket.create_connection(l.getsockname()); b, _ = l.accept()
x = socket.create_connection(l.getsockname()); y, _ = l.accept(); full = 0; x.setblocking(False)
try:
    while True: full += x.send(b'x' * 4096)
except BlockingIOError: pass
outs = [{'came': 0}, {'came': 0}]; enough = lambda: gone() and outs[0]['came'] > 100 < outs[1]['came']
threads = [threading.Thread(target=send, args=(c, who, enough, out)) for c, who, out in ((a, b'a', outs[0]), (b, b'b', outs[1]))]
threads += [threading.Thread(target=receive, args=(c, who, out)) for c, who, out in ((a, b'b', outs[0]), (b, b'a', outs[1]))]
for t in threads: t.start()
while outs[0]['came'] < 20: time.sleep(0.001)
ready(); wait()
for t in threads: t.join()
check(outs[0]['came'] == outs[1]['sent'] and outs[1]['came'] == outs[0]['sent'], outs)
x.close(); came = y.makefile('rb').read(); check(len(came) == full and came == b'x' * full, len(came), full)
z = socket.create_connection(l.getsockname()); w, _ = l.accept(); z.send(b'new'); check(w.recv(9) == b'new')
print('OK')
"#;
    let script = format!("exec /usr/bin/python3 -c \"$(cat <<'END'\n{}\nEND\n)\"", script(body));
    Program { name: "tcp", script, memory: 128 }
}

/// The address that a job's only task has, as its user sees it.
fn address(grid: &Grid, job: JobId) -> String {
    grid.job(1, job).tasks[0].address.unwrap().to_string()
}

fn task_client(name: &str, address: &str) -> JobSpec {
    let body = format!("{CLIENT}\nclient(sys.argv[1], sys.argv[2].encode(), '/tmp/go')\n");
    python(&body, &[address, name])
}

/// What a client or a server printed of a connection: blocks that came, and blocks that it sent.
fn counts(printed: &str, begin: &str) -> (u64, u64) {
    let line = printed.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("{printed}"));
    let words: Vec<_> = line.split(' ').collect();
    (words[3].parse().unwrap(), words[5].parse().unwrap())
}

/// Both ends tell the same of the connection of this name.
fn agree(server: &str, client: &str, name: &str) -> u64 {
    let (came_there, sent_there) = counts(server, &format!("served {name} "));
    let (came_here, sent_here) = counts(client, &format!("client {name} "));
    assert_eq!(
        (came_there, sent_there),
        (sent_here, came_here),
        "{name}: what one sent is what the other got"
    );
    assert!(came_there > 100 && sent_there > 100, "{name}: {came_there}, {sent_there}");
    (came_there + sent_there) * 4096
}

/// A connection from a node itself.
struct FromNode {
    program: grid_tests::Running,
    go: PathBuf,
    name: String,
}

impl FromNode {
    fn start(grid: &Grid, node: u32, address: &str, name: &str) -> Self {
        let go = grid.dir().join(format!("go-{name}"));
        let body = script(&format!("{CLIENT}\nclient(sys.argv[1], sys.argv[2].encode(), sys.argv[3])\n"));
        let mut command = grid.machine(node).exec("/usr/bin/python3");
        command.args(["-c", &body, address, name]).arg(&go);
        Self { program: grid_tests::Running::start(&mut command), go, name: name.to_owned() }
    }

    fn flows(&self) {
        let said = |text: &str| text.matches("flows").count();
        let before = said(&self.program.printed());
        until(&format!("{} flows", self.name), || {
            let printed = self.program.printed();
            assert!(!printed.contains("WRONG"), "{printed}");
            said(&printed) > before + 1
        });
    }

    fn end(self) -> String {
        fs::write(&self.go, "").unwrap();
        let run = self.program.wait();
        assert!(run.ok().ends_with("OK"), "{run:?}");
        run.stdout
    }
}

/// The stream of a client that is a task goes on.
fn flows(grid: &Grid, job: JobId) {
    let before = grid.logs(1, job, 0).matches("flows").count();
    until(&format!("{job} flows"), || {
        let printed = grid.logs(1, job, 0);
        assert!(!printed.contains("WRONG") && !printed.contains("Error"), "{printed}");
        printed.matches("flows").count() > before + 1
    });
}

/// What a node has of networks: links by name (that of a task is there as long as its namespace), addresses, routes, and the nodes to which what is for everybody goes. What the
/// kernel has learned from packets, it forgets by itself, as everywhere: which hardware address an address has, and behind
/// which node that was seen last.
fn networks(grid: &Grid, node: u32) -> Vec<String> {
    let ask = |words: &str| {
        let mut words = words.split(' ');
        let output = grid.machine(node).exec(words.next().unwrap()).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    let links = ask("ip -o link").into_iter().filter_map(|line| Some(line.split(": ").nth(1)?.to_owned()));
    let mut found: Vec<_> = links.collect();
    found.extend(ask("ip -4 -o address"));
    found.extend(ask("ip -4 route show table all"));
    found.extend(
        ask("bridge fdb show dev gridvx").into_iter().filter(|line| line.contains("00:00:00:00:00:00")),
    );
    found.sort();
    found
}

/// Moves one, and tells how long its connection was silent, as far as it stood still.
fn hop_flowing(grid: &Grid, job: JobId, to: u32) -> u64 {
    hop(grid, 1, job, to)["stopped"]["nanos"].as_u64().unwrap() / 1_000_000
}

#[test]
fn connections_live_through_moves_and_lose_nothing() {
    let config = GridConfig::new("connections", 3);
    with(
        "connections_live_through_moves_and_lose_nothing",
        || config.up(),
        |grid| {
            if !moves(grid) || !addresses(grid) {
                return;
            }
            let members = |node| networks(grid, node).iter().filter(|line| line.contains(" dst ")).count();
            until("all nodes know each other", || (1..=3).all(|node| members(node) == 2));
            let before: Vec<_> = (1..=3).map(|node| networks(grid, node)).collect();
            let server = begin(grid, 1, python(SERVER, &[]));
            let server_address = address(grid, server);
            let client = begin(grid, 2, task_client("task", &server_address));
            let node = FromNode::start(grid, 3, &server_address, "node");
            let shown = grid.gridctl(2, ["status", &client.to_string()]);
            assert!(shown.ok().contains(&address(grid, client)), "{shown:?}");
            let flow = || {
                flows(grid, client);
                node.flows();
            };
            flow();
            // There and back; three hops; then the other end, and both in turn.
            let mut stood = Vec::new();
            for (job, to) in [
                (server, 2),
                (server, 1),
                (server, 3),
                (server, 2),
                (server, 1),
                (client, 3),
                (server, 2),
                (client, 1),
            ] {
                stood.push(hop_flowing(grid, job, to));
                assert_eq!(address(grid, server), server_address);
                flow();
            }
            let from_task = verdict(grid, client, "client");
            let from_node = node.end();
            let served = verdict(grid, server, "server");
            let bytes = agree(&served, &from_task, "task") + agree(&served, &from_node, "node");
            println!(
                "FIGURE eight hops: {} MiB compared, none lost; stood still for {stood:?} ms",
                bytes >> 20
            );
            for node in 1..=3 {
                until("no process is left", || grid.task_processes(node).is_empty());
                let was = &before[node as usize - 1];
                let begun = std::time::Instant::now();
                until(&format!("the networks of node{node} are as before"), || {
                    let is = networks(grid, node);
                    let left: Vec<_> = is.iter().filter(|line| !was.contains(line)).collect();
                    assert!(
                        left.is_empty() || begun.elapsed() < Duration::from_secs(10),
                        "node{node}: {left:#?}"
                    );
                    left.is_empty()
                });
            }
        },
    );
}

#[test]
fn connections_go_on_where_a_disturbed_move_leaves_them() {
    let config = GridConfig::new("disturbed", 4);
    with(
        "connections_go_on_where_a_disturbed_move_leaves_them",
        || config.up(),
        |grid| {
            if !moves(grid) || !addresses(grid) {
                return;
            }
            let server = begin(grid, 2, python(SERVER, &[]));
            let address = address(grid, server);
            let client = begin(grid, 1, task_client("task", &address));
            let node = FromNode::start(grid, 4, &address, "node");
            let mut stayed = 0;
            for round in 0..6 {
                flows(grid, client);
                node.flows();
                let from = grid.places(1, server)[0].unwrap().0;
                let to = if from == 2 { 3 } else { 2 };
                let command = ["migrate".to_owned(), server.to_string(), "--to".into(), format!("node{to}")];
                let moving = grid.start(4, command);
                // The destination while it is asked for, while it copies, and while it makes the task; then the source.
                let folder = match round % 2 {
                    0 => grid.machine(from).dir().join("state/checkpoints/fresh"),
                    _ => grid.machine(to).dir().join("state/checkpoints/unpacked"),
                };
                until("it is so far", || fs::read_dir(&folder).is_ok_and(|mut all| all.next().is_some()));
                grid.kill_agent(if round < 4 { to } else { from });
                moving.wait();
                until_some("its home knows where it is", || {
                    let status = grid.try_job(1, server)?;
                    let task = status.tasks.first()?;
                    let place = task.node.filter(|_| task.state == libgrid::status::TaskState::Running)?.0;
                    process(grid, place, server)
                });
                stayed += u32::from(grid.places(1, server)[0] == Some(NodeId(from)));
            }
            flows(grid, client);
            node.flows();
            let (from_task, from_node) = (verdict(grid, client, "client"), node.end());
            let served = verdict(grid, server, "server");
            agree(&served, &from_task, "task");
            agree(&served, &from_node, "node");
            assert!(stayed > 0, "no move was given up");
            println!("FIGURE of 6 moves with a killed agent {stayed} were given up, and no byte was lost");
        },
    );
}

/// Sends back what comes, on one connection after the other, and at once.
const ECHO: &str = r#"
l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind((os.environ['GRIDOS_ADDRESS'], 7000)); l.listen(); served = 0
def serve(c):
    while True:
        b = c.recv(65536)
        if not b: break
        c.sendall(b)
    c.close()
def accept():
    global served
    while True: c, _ = l.accept(); served += 1; threading.Thread(target=serve, args=(c,)).start()
threading.Thread(target=accept, daemon=True).start()
ready(); wait()
print('served', served, flush=True); print('OK', flush=True); os._exit(0)
"#;

/// Makes connections, says something on each, hears it again, and closes it.
const CHURN: &str = r#"
n = 0
while not gone():
    c = socket.create_connection((sys.argv[1], 7000)); want = block(b'churn', n)[:SIZE]
    c.sendall(want); c.shutdown(socket.SHUT_WR); got = c.makefile('rb').read(); c.close()
    check(got == want, 'connection', n, len(got)); n += 1
    if n == 3: ready()
    if n % 50 == 0: print('flows', n, flush=True)
    time.sleep(0.005)
print('made', n)
print('OK')
"#;

#[test]
fn connections_come_and_go_while_both_ends_move() {
    let config = GridConfig::new("churn", 3);
    with(
        "connections_come_and_go_while_both_ends_move",
        || config.up(),
        |grid| {
            if !moves(grid) || !addresses(grid) {
                return;
            }
            let server = begin(grid, 1, python(ECHO, &[]));
            let client = begin(grid, 2, python(CHURN, &[&address(grid, server)]));
            let mut again = 0;
            for (job, to) in [(server, 3), (client, 1), (server, 2), (client, 3), (server, 1), (client, 2)] {
                flows(grid, client);
                until("it moves", || {
                    let to = format!("node{to}");
                    let moved = grid.gridctl(1, ["migrate", &job.to_string(), "--to", &to]);
                    assert!(moved.status == 0 || moved.stderr.contains("try again"), "{moved:?}");
                    again += u32::from(moved.status != 0);
                    moved.status == 0
                });
            }
            flows(grid, client);
            let made = verdict(grid, client, "client");
            let served = verdict(grid, server, "server");
            println!("FIGURE six moves under short connections, {again} tried again: {made}{served}");
        },
    );
}

/// Tells how its connection ended; its listener goes on.
const ENDS: &str = r#"
l = socket.socket(); l.bind((os.environ['GRIDOS_ADDRESS'], 7000)); l.listen()
print('address', os.environ['GRIDOS_ADDRESS'], flush=True)
c, _ = l.accept(); c.sendall(b'hello'); ready()
try: print('ended', c.recv(9), flush=True)
except OSError as error: print('ended', error.errno, flush=True)
c, _ = l.accept(); c.sendall(b'again'); wait()
print('OK')
"#;

#[test]
fn a_task_that_goes_back_sees_its_connections_end_and_takes_new_ones() {
    let config = GridConfig::new("goes_back", 2);
    with(
        "a_task_that_goes_back_sees_its_connections_end_and_takes_new_ones",
        || config.up(),
        |grid| {
            if !moves(grid) || !addresses(grid) {
                return;
            }
            let mut spec = python(ENDS, &[]);
            spec.nodes = vec!["node2".into()];
            let job = grid.submit(1, spec);
            until("it listens", || grid.logs(1, job, 0).contains("address"));
            let address = address(grid, job);
            let connect = |greets: &str| {
                let code = "import socket, sys, time\nc = socket.create_connection((sys.argv[1], 7000))\n\
                            print(c.recv(9).decode(), flush=True)\ntime.sleep(1000)";
                let mut command = grid.machine(1).exec("/usr/bin/python3");
                command.args(["-c", code, &address]);
                let running = grid_tests::Running::start(&mut command);
                running.until_printed(greets);
                running
            };
            let first = connect("hello");
            until("it is ready", || grid.logs(1, job, 0).contains("ready"));
            let written = grid.gridctl(1, ["checkpoint", &job.to_string(), "--json"]);
            assert_eq!(written.status, 0, "{written:?}");
            grid.gridctl(1, ["restore", &job.to_string()]).ok();
            until("it sees the end", || grid.logs(1, job, 0).contains("ended"));
            let second = connect("again");
            assert_eq!(grid.job(1, job).tasks[0].address.unwrap().to_string(), address);
            let printed = verdict(grid, job, "goes back");
            assert_eq!(printed.matches("ended").count(), 1, "{printed}");
            for running in [first, second] {
                running.signal(nix::sys::signal::Signal::SIGKILL);
                running.wait();
            }
        },
    );
}

#[test]
fn what_cannot_have_or_keep_an_address_says_so() {
    let config = GridConfig::new("says_so", 3);
    with(
        "what_cannot_have_or_keep_an_address_says_so",
        || config.up(),
        |grid| {
            if !moves(grid) || !addresses(grid) {
                return;
            }
            let refused = grid.gridctl(1, ["submit", "--net", "mesh", "--", "true"]);
            assert!(refused.status == 2 && refused.stderr.contains("write host or grid"), "{refused:?}");
            // Has not accepted.
            let slow = r#"
l = socket.socket(); l.bind((os.environ['GRIDOS_ADDRESS'], 7000)); l.listen()
c = socket.create_connection(l.getsockname()); ready(); wait(); a, _ = l.accept(); c.send(b'x'); check(a.recv(1) == b'x')
print('OK')
"#;
            let job = begin(grid, 2, python("ready(); wait()\nprint('OK')", &[]));
            verdict(grid, job, "address");
            let job = grid.submit(1, python(slow, &[]));
            until("it is ready", || grid.logs(1, job, 0).contains("ready"));
            let from = grid.places(1, job)[0].unwrap().0;
            let to = format!("node{}", if from == 2 { 3 } else { 2 });
            let refused = grid.gridctl(1, ["migrate", &job.to_string(), "--to", &to]);
            refused.says(&["port 7000", "not accepted yet", "try again", "runs on"]);
            // A node whose owner does not want it.
            let file = grid.machine(if from == 2 { 3 } else { 2 }).dir().join("gridosd.toml");
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, format!("task_network = false\n{text}")).unwrap();
            let other = if from == 2 { 3 } else { 2 };
            grid.kill_agent(other);
            let told = until_some("its agent can be asked again", || {
                let refused = grid.gridctl(1, ["migrate", &job.to_string(), "--to", &to]);
                refused.stderr.contains("runs on").then_some(refused)
            });
            told.says(&["cannot give it one", "switched it off", "choose another node"]);
            let mut spec = python("print('OK')", &[]);
            spec.nodes = vec![to];
            // Until the home has heard of it, the node itself refuses.
            until("its home knows that it cannot run there", || {
                let job = grid.submit(1, spec.clone());
                let told = until_some("it is told why", || {
                    let status = grid.job(1, job);
                    let outcome = status.tasks[0].outcome.as_ref().map(ToString::to_string);
                    outcome.or(status.summary.why).filter(|told| !told.contains("asking for room"))
                });
                assert!(told.contains("an address of its own") && told.contains("--net grid"), "{told}");
                told.contains("that may be used cannot give")
            });
            let doctor = grid.gridctl(other, ["doctor"]);
            assert!(doctor.stdout.contains("task_network"), "{doctor:?}");
            verdict(grid, job, "not accepted");
        },
    );
}

/// Whether tasks can have addresses here; if not, the reason is printed.
pub(crate) fn addresses(grid: &Grid) -> bool {
    let findings = grid.gridctl(1, ["doctor", "--json"]).json();
    let network =
        findings.as_array().unwrap().iter().find(|finding| finding["subject"] == "network of tasks").unwrap();
    let works = network["verdict"] == "good";
    if !works {
        let _ = writeln!(io::stdout(), "SKIPPED: {}", network["text"]);
    }
    works
}
