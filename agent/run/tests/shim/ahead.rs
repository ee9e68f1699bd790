//! Tasks that are launched before their checkpoint is there, as those are that move.

use std::path::{Path, PathBuf};

use grid_checkpoint::order::Then;
use grid_qos::{Cgroups, ROOT};
use grid_run::protocol::{How, Launch, ToShim};
use libgrid::control::{Stdin, Stream};

use crate::bench::{Bench, run};
use crate::checkpoint::{READER, bench_with_criu, left_behind};
use crate::programs;

impl Bench {
    /// Launches another one ahead, and waits until CRIU waits in its place.
    fn launch_ahead(&mut self, launch: &Launch, index: u32) {
        let restore = Some(self.to_come());
        let (run, folder) = (run(index), self.folder(index));
        let again = Launch { run, folder, restore, ahead: true, ..launch.clone() };
        self.send(&ToShim::Launch(Box::new(again)));
        let groups = Cgroups::open(Path::new(ROOT), &self.shims.cgroup_parent).unwrap();
        let name = format!("t{index}");
        // The process inside, and CRIU.
        self.until("CRIU waits", || groups.group(&name).processes().is_ok_and(|all| all.len() > 1));
    }

    /// Where the checkpoint will be.
    fn to_come(&self) -> PathBuf {
        self.folder.path().join("c1")
    }

    /// Writes it, and says that it is there.
    fn arrives(&mut self, index: u32) {
        let (folder, _) = self.checkpoint(1, "c1", Then::End).unwrap();
        assert_eq!(folder, self.to_come());
        assert_eq!(self.ended(1).how, How::Killed(libc::SIGKILL));
        self.send(&ToShim::Arrived { run: run(index), time: None, before: Default::default() });
    }
}

fn tree(bench: &mut Bench) -> Launch {
    let program = programs::all().into_iter().find(|program| program.name == "tree").unwrap();
    let launch = bench.program(1, &program);
    bench.start(launch.clone());
    bench.ready(1);
    launch
}

#[test]
fn what_was_made_ready_goes_on_when_its_checkpoint_is_there() {
    let Some(mut bench) = bench_with_criu() else { return };
    let launch = tree(&mut bench);
    bench.launch_ahead(&launch, 2);
    bench.arrives(2);
    bench.verdict(2, "tree");
}

#[test]
fn a_terminal_that_was_made_ready_has_what_was_typed() {
    let Some(mut bench) = bench_with_criu() else { return };
    let mut launch = bench.launch(1, &["sh", "-c", READER]);
    launch.stdin = Some(Stdin::Terminal { rows: 33, cols: 77 });
    bench.start(launch.clone());
    bench.ready(1);
    let typed = b"one\nhalf";
    bench.send(&ToShim::Input { run: run(1), at: 0, bytes: typed.to_vec() });
    bench.launch_ahead(&launch, 2);
    bench.arrives(2);
    let at = typed.len() as u64;
    bench.send(&ToShim::Input { run: run(2), at, bytes: b"\x7f\x7f\n\x04\x04".to_vec() });
    bench.go(2);
    let how = bench.ended(2).how;
    let out = bench.output(2, Stream::Stdout);
    assert_eq!(how, How::Exited(0), "{out}");
    assert!(out.contains(r"seen [b'one\n', b'ha\n', b'']"), "{out}");
}

#[test]
fn what_was_made_ready_and_is_not_needed_leaves_nothing() {
    let Some(mut bench) = bench_with_criu() else { return };
    let launch = tree(&mut bench);
    let before = left_behind(&bench);
    bench.launch_ahead(&launch, 2);
    bench.send(&ToShim::Fence(run(2)));
    assert_eq!(bench.ended(2).how, How::Fenced);
    bench.send(&ToShim::Forget(run(2)));
    bench.until("nothing is left behind", || left_behind(&bench) == before);

    // Its agent goes: nobody hears of it any more, and the others run on.
    bench.launch_ahead(&launch, 3);
    bench.agent.shutdown(std::net::Shutdown::Both).unwrap();
    bench.until("nothing is left behind", || left_behind(&bench) == before);
    bench.agent = bench.shims.find().unwrap().remove(0).1;
    bench.greet();
    assert_eq!(bench.kept.iter().map(|kept| kept.run).collect::<Vec<_>>(), [run(1)]);
    bench.verdict(1, "tree");
}

#[test]
fn a_checkpoint_that_does_not_fit_what_was_made_ready_is_refused() {
    let Some(mut bench) = bench_with_criu() else { return };
    let launch = tree(&mut bench);
    let with_input = Launch { stdin: Some(Stdin::Pipe), ..launch };
    bench.launch_ahead(&with_input, 2);
    bench.arrives(2);
    match bench.ended(2).how {
        How::NotStarted { why, status: 126 } => {
            assert_eq!(why, "the checkpoint is of a task with 2 streams, and 3 are given");
        }
        other => panic!("{other:?}"),
    }
}
