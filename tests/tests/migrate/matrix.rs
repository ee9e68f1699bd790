//! Each program of the matrix over one, two and three hops.

use libgrid::spec::Net;

use super::*;

/// The programs that are checkpointed, too, and one with connections, which live through moves alone.
fn all() -> Vec<Program> {
    programs::all().into_iter().chain([connections::row()]).collect()
}

/// One program: there; there and back; three hops.
fn matrix(test: &str, name: &str) {
    with(test, shared, |grid: &Arc<Grid>| {
        if !moves(grid) || name == "tcp" && !connections::addresses(grid) {
            return;
        }
        let program = all().into_iter().find(|program| program.name == name).unwrap();
        for ways in [&[3][..], &[3, 2], &[3, 1, 2]] {
            let net = if name == "tcp" { Net::Grid } else { Net::Host };
            let job = begin(grid, 2, spec(grid, &program).net(net));
            let mut stopped = Vec::new();
            for to in ways {
                // Asked on a node that need not have to do with it.
                let moved = hop(grid, 3, job, *to);
                stopped.push(format!("{} ms", moved["stopped"]["nanos"].as_u64().unwrap() / 1_000_000));
            }
            let printed = verdict(grid, job, name);
            if name == "counter" {
                let numbers: Vec<u64> = printed.lines().filter_map(|line| line.parse().ok()).collect();
                assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{printed}");
            }
            println!("FIGURE {name} over {ways:?}: stood still {}", stopped.join(", "));
        }
    });
}

macro_rules! rows {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                matrix(stringify!($test), $name);
            }
        )*

        #[test]
        fn every_program_has_its_row() {
            let names: Vec<_> = all().iter().map(|program| program.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

rows! {
    a_counter_moves: "counter",
    threads_with_locks_move: "threads",
    a_shell_pipeline_moves: "pipeline",
    a_tree_of_fifty_processes_moves: "tree",
    python_with_threads_moves: "python",
    appended_and_mapped_files_move: "files",
    deleted_files_move: "deleted",
    unix_sockets_move: "sockets",
    timers_and_signals_move: "timers",
    zombies_move: "zombies",
    a_quarter_of_a_gibibyte_moves: "memory",
    established_tcp_moves: "tcp",
}
