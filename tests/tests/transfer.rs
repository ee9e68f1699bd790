//! Copies between nodes: what `gridctl cp`, `put`, `get`, `ls` and `export` do, and what interrupts them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use grid_tests::{Grid, Shared, until, with};
use libgrid::units::Bytes;

/// A user of every node, who is not root.
const NOBODY: u32 = 65534;

static GRID: Shared = Shared::new();

fn shared(test: &str, body: impl FnOnce(&Grid)) {
    with(test, || GRID.get(|| Grid::up("copies", 3)), |grid| body(grid));
}

/// A folder that everybody may read.
fn place(grid: &Grid, name: &str) -> PathBuf {
    grid.folder(name, 0)
}

/// A folder of `nobody`, which the node lends.
fn lent(grid: &Grid, node: u32, name: &str, options: &[&str]) -> PathBuf {
    let folder = grid.folder(name, NOBODY);
    let mut words = vec!["export", "--write"];
    words.extend(options);
    words.push(folder.to_str().unwrap());
    grid.gridctl(node, words).ok();
    folder
}

fn noise(path: &Path, length: usize) {
    let mut state = length as u64 | 1;
    let bytes: Vec<u8> = (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect();
    fs::write(path, bytes).unwrap();
}

fn same(a: &Path, b: &Path) -> bool {
    fs::read(a).unwrap() == fs::read(b).unwrap()
}

fn hidden(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with('.')).collect()
}

/// How many ranges of interrupted files are there: a journal has an entry of 52 bytes for each.
fn ranges(folder: &Path) -> u64 {
    let journals = hidden(folder).into_iter().filter(|path| path.to_string_lossy().ends_with("-journal"));
    journals.map(|path| path.metadata().map_or(0, |meta| meta.len().saturating_sub(64) / 52)).sum()
}

fn at(node: u32, path: &Path) -> String {
    format!("node{node}:{}", path.display())
}

#[test]
fn a_file_is_put_listed_and_got_back() {
    shared("a_file_is_put_listed_and_got_back", |grid| {
        let here = place(grid, "put-here");
        let there = lent(grid, 3, "put-there", &["--grid", "/physics/put"]);
        noise(&here.join("big.h5"), 9_000_001);
        let big = here.join("big.h5");
        let put = grid.gridctl(1, ["--json", "put", big.to_str().unwrap(), "grid:/physics/put/"]).json();
        assert_eq!((put["bytes"].as_u64(), put["items"].as_u64()), (Some(9_000_001), Some(1)));
        assert!(same(&big, &there.join("big.h5")));
        // It belongs to the user whose rights count there.
        assert_eq!(there.join("big.h5").metadata().unwrap().uid(), NOBODY);
        let list = grid.gridctl(2, ["ls", "-l", "grid:/physics/put"]);
        assert!(list.ok().contains("big.h5"), "{}", list.stdout);
        let one = grid.gridctl(2, ["ls", "grid:/physics/put/big.h5"]);
        assert_eq!(one.ok().trim(), "big.h5");
        let back = here.join("back.h5");
        grid.gridctl(2, ["get", "grid:/physics/put/big.h5", "-o", back.to_str().unwrap()]).ok();
        assert!(same(&big, &back));
        assert!(grid.gridctl(2, ["exports", "--everywhere"]).ok().contains("grid:/physics/put"));
        grid.gridctl(3, ["unexport", there.to_str().unwrap()]).ok();
        grid.gridctl(2, ["get", "grid:/physics/put/big.h5"]).says(&["no node lends", "/physics/put/big.h5"]);
    });
}

#[test]
fn a_third_node_has_a_tree_copied_between_two_others() {
    shared("a_third_node_has_a_tree_copied_between_two_others", |grid| {
        let from = lent(grid, 1, "third-from", &[]);
        let to = lent(grid, 3, "third-to", &[]);
        let run = from.join("run7");
        fs::create_dir_all(run.join("a/b")).unwrap();
        for (index, size) in [0, 10, 5000, 700_000].into_iter().enumerate() {
            noise(&run.join(format!("a/b/{index} \u{e4}.dat")), size);
        }
        fs::set_permissions(run.join("a"), fs::Permissions::from_mode(0o755)).unwrap();
        grid.gridctl(2, ["cp", "-r", &at(1, &run), &format!("{}/", at(3, &to))]).ok();
        for index in 0..4 {
            let name = format!("run7/a/b/{index} \u{e4}.dat");
            assert!(same(&from.join(&name), &to.join(&name)), "{name}");
        }
        // Wildcards, and what is there already.
        let pattern = format!("{}/*.dat", at(1, &run.join("a/b")));
        let twice = grid.gridctl(2, ["--json", "cp", &pattern, &at(3, &to.join("run7/a/b"))]).json();
        assert_eq!(twice["skipped"], 4);
        grid.gridctl(2, ["cp", &at(1, &run), &at(3, &to)]).says(&["is a folder: say -r"]);
    });
}

#[test]
fn nothing_is_read_or_written_that_is_not_lent() {
    shared("nothing_is_read_or_written_that_is_not_lent", |grid| {
        let closed = place(grid, "closed");
        fs::write(closed.join("secret"), "s").unwrap();
        let shelf = lent(grid, 2, "shelf", &[]);
        std::os::unix::fs::symlink(&closed, shelf.join("way-out")).unwrap();
        let target = place(grid, "closed-target");
        let to = target.join("x");
        let get = |from: &Path| grid.gridctl(1, ["get", &at(2, from), "-o", to.to_str().unwrap()]);
        get(&closed.join("secret")).says(&["node2 lends no folder that holds", "gridctl export"]);
        // A link that leads out of what is lent, and a path that climbs.
        get(&shelf.join("way-out/secret")).says(&["cannot be read"]);
        get(&shelf.join("../closed/secret")).says(&["without .."]);
        assert!(!to.exists());
        // For reading only.
        let shown = lent(grid, 2, "shown", &[]);
        fs::write(shown.join("open"), "o").unwrap();
        grid.gridctl(2, ["export", shown.to_str().unwrap()]).ok();
        get(&shown.join("open")).ok();
        let secret = closed.join("secret");
        grid.gridctl(1, ["cp", secret.to_str().unwrap(), &at(2, &shown)]).says(&["for reading only"]);
        // Never as root, not what is no folder, and only by root.
        grid.gridctl(2, ["export", closed.to_str().unwrap()]).says(&["never act as root", "--as"]);
        grid.gridctl(2, ["export", "--as", "root", "/etc"]).says(&["never act as root"]);
        grid.gridctl(2, ["export", "--as", "nobody", secret.to_str().unwrap()]).says(&["is no folder"]);
        grid.gridctl_as(2, NOBODY, Path::new("/"), ["export", shown.to_str().unwrap()]).says(&["only root"]);
    });
}

#[test]
fn a_user_copies_with_their_own_rights_alone() {
    shared("a_user_copies_with_their_own_rights_alone", |grid| {
        let there = lent(grid, 2, "own-there", &[]);
        let mine = grid.folder("own-mine", NOBODY);
        let secret = place(grid, "own-root").join("secret");
        fs::write(&secret, "s").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let copied =
            grid.gridctl_as(1, NOBODY, Path::new("/"), ["cp", secret.to_str().unwrap(), &at(2, &there)]);
        copied.says(&["cannot be read", "Permission denied"]);
        fs::write(mine.join("open"), "o").unwrap();
        chown(mine.join("open"), Some(NOBODY), Some(NOBODY)).unwrap();
        grid.gridctl_as(
            1,
            NOBODY,
            Path::new("/"),
            ["cp", mine.join("open").to_str().unwrap(), &at(2, &there)],
        )
        .ok();
        let root = place(grid, "own-root2");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let got = grid.gridctl_as(
            1,
            NOBODY,
            Path::new("/"),
            ["get", &at(2, &there.join("open")), "-o", root.to_str().unwrap()],
        );
        got.says(&["cannot be written", "Permission denied"]);
    });
}

#[test]
fn what_is_wrong_is_said_in_one_sentence() {
    shared("what_is_wrong_is_said_in_one_sentence", |grid| {
        let there = lent(grid, 2, "wrong", &[]);
        let place = place(grid, "wrong-here");
        fs::write(place.join("file"), "f").unwrap();
        let file = place.join("file");
        let file = file.to_str().unwrap();
        let cp = |from: &str, to: &str| grid.gridctl(1, ["cp", from, to]);
        cp("/no/such/file", &at(2, &there)).says(&["/no/such/file cannot be read", "No such file"]);
        cp(file, "node9:/x").says(&["there is no node node9", "gridctl nodes"]);
        cp(file, "node2:x").says(&["begins with /"]);
        cp(file, &at(2, &there.join("no/such/folder"))).says(&["cannot be written"]);
        cp(file, &format!("{}/", at(2, &there.join("new")))).says(&["a folder was asked for"]);
        cp(file, "grid:/nowhere/").says(&["no node lends", "gridctl exports"]);
        cp("/tmp/*.nothing", &at(2, &there)).says(&["nothing matches"]);
        grid.gridctl(1, ["cp", "--streams", "0", file, "node2:/x"]).says(&["from 1 to 64"]);
        grid.gridctl(1, ["put", file, "/tmp/"]).says(&["put copies to NODE"]);
        assert_eq!(fs::read_dir(&there).unwrap().count(), 0);
    });
}

#[test]
fn a_copy_outlasts_agents_that_are_killed_and_lines_that_are_cut() {
    with(
        "a_copy_outlasts_agents_that_are_killed_and_lines_that_are_cut",
        || Grid::up("outlast", 3),
        |grid| {
            let here = place(grid, "outlast-here");
            let there = lent(grid, 3, "outlast-there", &[]);
            let big = here.join("big");
            noise(&big, 60_000_000);
            // Slow enough for all that is to come.
            let copy = grid.start(
                1,
                ["cp", "--limit", &Bytes(8_000_000).to_string(), big.to_str().unwrap(), &at(3, &there)],
            );
            until("it has begun", || ranges(&there) > 0);
            for node in [1, 3] {
                grid.kill_agent(node);
                until("the agent is back", || grid.machine(node).agent_pid().unwrap().is_some());
                let before = ranges(&there);
                until("it goes on", || ranges(&there) > before || there.join("big").exists());
            }
            grid.machine(3).cut().unwrap();
            // For so long the line is cut, and longer than the agents bear it.
            std::thread::sleep(Duration::from_secs(6));
            assert!(!there.join("big").exists(), "it has its name before it is whole");
            grid.machine(3).heal().unwrap();
            copy.wait().ok();
            assert!(same(&big, &there.join("big")));
            assert_eq!(hidden(&there), Vec::<PathBuf>::new());
        },
    );
}

#[test]
fn an_interrupted_copy_leaves_no_process_and_goes_on_when_it_is_given_again() {
    shared("an_interrupted_copy_leaves_no_process_and_goes_on_when_it_is_given_again", |grid| {
        let here = place(grid, "stop-here");
        let there = lent(grid, 2, "stop-there", &[]);
        let big = here.join("big");
        noise(&big, 40_000_000);
        let words = |limit: &'static str| {
            ["--json", "cp", "--limit", limit, big.to_str().unwrap()].map(str::to_owned)
        };
        let target = at(2, &there);
        let copy = grid.start(1, words("10M").into_iter().chain([target.clone()]));
        until("half of it is there", || ranges(&there) >= 4);
        copy.signal(nix::sys::signal::Signal::SIGINT);
        copy.wait();
        until("no mover is left", || movers_of(&there).is_empty());
        assert!(!there.join("big").exists());
        let again = grid.gridctl(1, words("500M").into_iter().chain([target])).json();
        let sent = again["bytes"].as_u64().unwrap();
        assert!(sent < 40_000_000, "all of it was sent again");
        assert!(same(&big, &there.join("big")));
        assert_eq!(hidden(&there), Vec::<PathBuf>::new());
    });
}

#[test]
fn a_certificate_of_the_vo_logs_in_to_an_ftp_server_of_another_node() {
    shared("a_certificate_of_the_vo_logs_in_to_an_ftp_server_of_another_node", |grid| {
        let root = grid.folder("ftp-root", NOBODY);
        let (server, client) = (place(grid, "ftp-server"), place(grid, "ftp-client"));
        grid.gridctl(1, ["vo", "certificate", "-o", server.to_str().unwrap()]).ok();
        grid.gridctl_as(2, NOBODY, Path::new("/"), ["vo", "certificate", "-o", "/no/such"])
            .says(&["cannot make /no/such"]);
        grid.gridctl(2, ["vo", "certificate", "-o", client.to_str().unwrap()]).ok();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&client.join("user.key")), mode(&client.join("user.crt"))), (0o600, 0o644));
        let file = |folder: &Path, name: &str| folder.join(name).to_str().unwrap().to_owned();
        let words = ["ftp", "serve", "--user", "nobody", "--port", "2811", "--require-tls", "--root"];
        let words = words.into_iter().map(str::to_owned).chain([root.to_str().unwrap().to_owned()]);
        let words = words.chain([
            "--cert".into(),
            file(&server, "user.crt"),
            "--key".into(),
            file(&server, "user.key"),
        ]);
        let running = grid.start(1, words.chain(["--ca".into(), file(&server, "ca.crt")]));
        running.until_printed("serving");
        let url = format!("ftp://{}:2811/hello", grid.machine(1).addr());
        let curl = |words: &[&str]| {
            let mut command = grid.machine(2).exec("curl");
            command.args(["-sS", "--ssl-reqd", "--cacert", &file(&client, "ca.crt")]).args(words).arg(&url);
            command.output().unwrap()
        };
        noise(&client.join("hello"), 100_000);
        let (cert, key, hello) =
            (file(&client, "user.crt"), file(&client, "user.key"), file(&client, "hello"));
        let put = curl(&["--cert", &cert, "--key", &key, "-T", &hello]);
        assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
        assert!(same(&client.join("hello"), &root.join("hello")));
        assert_eq!(root.join("hello").metadata().unwrap().uid(), NOBODY);
        assert!(!curl(&["-o", "/dev/null"]).status.success(), "somebody without a certificate got in");
        running.signal(nix::sys::signal::Signal::SIGTERM);
        running.wait();
    });
}

/// The movers that have a file below this folder open.
fn movers_of(folder: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let moving = processes.filter(|process| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        name.trim() == "gridos-mover"
            && open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path.starts_with(folder))
    });
    moving.collect()
}
