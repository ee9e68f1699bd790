//! Where the programs under test are.

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
