//! What a job takes along and brings back: names, bytes and owners, and what becomes of results that cannot be kept.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use grid_tests::{Grid, NOBODY, Shared, until, with};
use libgrid::control::NodeState;
use libgrid::ids::JobId;

static GRID: Shared = Shared::new();

fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Three nodes of 8 cores, which the tests here share.
fn grid() -> Arc<Grid> {
    GRID.get(|| Grid::up("results", 3))
}

fn job_of(text: &str) -> JobId {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no job"))
}

#[test]
fn inputs_and_results_keep_their_names_bytes_and_owner() {
    with("inputs_and_results_keep_their_names_bytes_and_owner", grid, |grid| {
        let folder = grid.folder("staging", NOBODY);
        let inputs = folder.join("in");
        fs::create_dir_all(inputs.join("deep/er")).unwrap();
        fs::create_dir(inputs.join("hollow")).unwrap();
        let names: [&[u8]; 5] = [b"plain", b"two words", b"line\nbreak", b"caf\xe9\xff", b"deep/er/-rf"];
        for name in names {
            fs::write(inputs.join(OsStr::from_bytes(name)), [b"of ", name, b"\0\xff"].concat()).unwrap();
        }
        fs::write(inputs.join("empty"), "").unwrap();
        fs::write(inputs.join("big"), vec![0x5a; 3 << 20]).unwrap();
        symlink("deep/er/-rf", inputs.join("link")).unwrap();
        symlink("/no/where", inputs.join("dangling")).unwrap();
        script(
            &folder.join("my prog"),
            "#!/bin/sh\nset -e\ntest ! -e stray\ncp -a in out\necho new > 'out/n ew'\nid -u\ncat \"$1\"\n",
        );
        fs::write(folder.join("data\n1"), "data!").unwrap();
        fs::write(folder.join("stray"), "").unwrap();
        for home in 1..=3 {
            let args = ["submit", "--cpus", "0.1", "--stage-in", "in/", "--stage-out", "out", "--node"];
            // On another node than its home.
            let elsewhere = format!("node{}", home % 3 + 1);
            let rest = [&elsewhere, "--", "./my prog", "data\n1"];
            let args = args.iter().chain(&rest);
            let job = grid.gridctl_as(home, NOBODY, &folder, args).ok().to_owned();
            let waited = grid.gridctl_as(home, NOBODY, &folder, ["wait", &job]);
            let log = grid.logs(home, job_of(&job), 0);
            assert_eq!(waited.status, 0, "{waited:?} {log}");
            let (uid, data) = log.split_once('\n').unwrap();
            assert!(uid != "0" && uid != NOBODY.to_string(), "it ran as {uid}");
            assert_eq!(data, "data!");

            let out = folder.join("out");
            for name in names {
                let bytes = fs::read(out.join(OsStr::from_bytes(name))).unwrap();
                assert_eq!(bytes, [b"of ", name, b"\0\xff"].concat(), "{name:?}");
            }
            assert_eq!(fs::read(out.join("empty")).unwrap(), b"");
            assert_eq!(fs::read(out.join("big")).unwrap(), vec![0x5a; 3 << 20]);
            assert!(out.join("hollow").is_dir());
            assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("deep/er/-rf"));
            assert_eq!(fs::read_link(out.join("dangling")).unwrap(), Path::new("/no/where"));
            assert_eq!(fs::read_to_string(out.join("n ew")).unwrap(), "new\n");
            for name in ["", "plain", "deep", "deep/er/-rf", "link", "n ew"] {
                let meta = fs::symlink_metadata(out.join(name)).unwrap();
                assert_eq!((meta.uid(), meta.gid()), (NOBODY, NOBODY), "{name:?}");
            }
            fs::remove_dir_all(out).unwrap();
        }
    });
}

#[test]
fn results_go_only_where_their_user_may_write() {
    with("results_go_only_where_their_user_may_write", grid, |grid| {
        let folder = grid.folder("roots", 0);
        let args = ["submit", "--cpus", "0.1", "--stage-out", "x", "--", "true"];
        let refused = grid.gridctl_as(1, NOBODY, &folder, args);
        refused.says(&[
            "results could not be brought to",
            "Permission denied",
            "submit from a folder of yours",
        ]);
        // A link that the task made does not lead the agent astray either.
        let folder = grid.folder("nobodys", NOBODY);
        fs::write(folder.join("secret"), "secret").unwrap();
        fs::set_permissions(folder.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        let steal = format!("ln -s {} loot", folder.join("secret").display());
        let args = [
            "submit",
            "--cpus",
            "0.1",
            "--stage-out",
            "loot/**",
            "--stage-out",
            "loot",
            "--",
            "sh",
            "-c",
            &steal,
        ];
        let thief = grid.folder("thief", 1234);
        let job = grid.gridctl_as(1, 1234, &thief, args).ok().to_owned();
        grid.wait(1, job_of(&job));
        assert!(fs::read_to_string(thief.join("loot")).is_err(), "the secret was stolen");
    });
}

#[test]
fn results_that_cannot_be_kept_stay_on_their_node_until_they_can() {
    let name = "results_that_cannot_be_kept_stay_on_their_node_until_they_can";
    // An agent is killed, so this grid is nobody else's.
    with(
        name,
        || Grid::up("kept", 2),
        |grid| {
            for node in ["node1", "node2"] {
                let folder = grid.folder(&format!("taken-{node}"), NOBODY);
                let give_to = |uid| std::os::unix::fs::chown(&folder, Some(uid), Some(uid)).unwrap();
                let args = ["submit", "--hold", "--cpus", "0.1", "--node", node, "--stage-out", "x", "--"];
                let script = ["sh", "-c", "echo result > x; echo printed"];
                let [kept, given_up] = [(); 2].map(|()| {
                    grid.gridctl_as(1, NOBODY, &folder, args.iter().chain(&script)).ok().to_owned()
                });
                give_to(0);
                grid.gridctl(1, ["release", &kept, &given_up]).ok();
                for job in [&kept, &given_up] {
                    let why = || grid.job(1, job_of(job)).summary.why.unwrap_or_default();
                    until(&format!("{job} tells"), || {
                        why().starts_with(&format!("{job}/0 ended, but its results"))
                    });
                    let why = why();
                    let words = ["Permission denied", &folder.display().to_string(), "gridctl kill"];
                    assert!(words.iter().all(|word| why.contains(word)), "{why}");
                }
                // What it printed can be read all the same.
                assert_eq!(grid.logs(1, job_of(&kept), 0), "printed\n");
                if node == "node2" {
                    // A node that is silent for long loses nothing that it keeps, and nothing runs again.
                    grid.machine(2).cut().unwrap();
                    until("node 2 is down", || {
                        grid.nodes_at(1).iter().any(|node| node.state != NodeState::Up)
                    });
                    std::thread::sleep(Duration::from_secs(8));
                    grid.machine(2).heal().unwrap();
                    grid.until_up(1, 2);
                }
                let waited = grid.gridctl(1, ["wait", "--timeout", "1s", &kept]);
                assert_eq!(waited.status, 124, "{waited:?}");
                assert!(waited.stderr.contains("Permission denied"), "{waited:?}");
                grid.gridctl_as(1, NOBODY, &folder, ["kill", &given_up]).ok();
                let waited = grid.gridctl(1, ["wait", &given_up]);
                assert_eq!(waited.status, 74, "{waited:?}");
                assert!(waited.stderr.contains("ran, but its results are not all here: "), "{waited:?}");
                // An agent that is started again goes on with it.
                grid.kill_agent(1);
                grid.until_up(1, 2);
                give_to(NOBODY);
                assert_eq!(grid.gridctl(1, ["wait", &kept]).status, 0);
                assert_eq!(fs::read_to_string(folder.join("x")).unwrap(), "result\n");
                assert_eq!(grid.logs(1, job_of(&kept), 0), "printed\n");
                assert_eq!(grid.job(1, job_of(&kept)).tasks[0].epoch, 1, "it ran once");
                let names: Vec<_> =
                    fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                assert_eq!(names, ["x"], "nothing else stays");
            }
        },
    );
}
