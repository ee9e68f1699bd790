//! Where the programs under test are.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;

/// The program `name` of this workspace, as `cargo build --bins` leaves it: two folders above a test program
/// (`target/debug/deps/suite-1234`).
pub fn program(name: &str) -> PathBuf {
    let here = env::current_exe().unwrap();
    let found = here.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("there is no {name} near {}: run cargo build --workspace --bins first", here.display())
    })
}

/// What `grid-probe` said, once all of it is as it has to be through every door.
pub fn probed(printed: &str) -> BTreeMap<String, String> {
    let said = printed.lines().filter_map(|line| line.split_once('='));
    let said: BTreeMap<String, String> = said.map(|(name, value)| (name.into(), value.into())).collect();
    let errno = |errno: nix::errno::Errno| (errno as i32).to_string();
    use nix::errno::Errno::{EDEADLK, EINVAL, EPERM, ESRCH};
    for (name, value) in [
        ("own_pid", "true".to_owned()),
        ("own_gpid", "true".into()),
        ("stranger", errno(ESRCH)),
        ("status", "1 true true".into()),
        ("signal", "true".into()),
        ("bad_signal", errno(EINVAL)),
        ("nobody", errno(ESRCH)),
        ("other_job", errno(EPERM)),
        ("own_move", errno(EDEADLK)),
        ("submit", errno(EPERM)),
        ("command", "true".into()),
        ("wrong", "\"nonsense\" is no command: help tells which there are".into()),
        ("done", "true".into()),
    ] {
        assert_eq!(said.get(name), Some(&value), "{name} in {printed}");
    }
    said
}
