//! Builds the library that is loaded into `criu dump`; see `src/hide/mod.rs`.

use std::path::Path;
use std::process::Command;

fn main() {
    let source = "src/hide/preload.c";
    println!("cargo::rerun-if-changed={source}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CC");
    let folder = std::env::var("OUT_DIR").unwrap_or_default();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut command = Command::new(&compiler);
    command.args(["-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-s"]);
    command.arg("-o").arg(Path::new(&folder).join("preload.so")).arg(source);
    match command.status() {
        Ok(status) if status.success() => (),
        Ok(status) => panic!("{compiler} could not build {source}: {status}"),
        Err(error) => panic!("{compiler} cannot be started, install a C compiler (gcc): {error}"),
    }
}
