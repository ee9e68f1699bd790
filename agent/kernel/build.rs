//! Compiles the eBPF programs with clang.
//!
//! The same source gives the same bytes, wherever the checkout lies: its path is in none of them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const FOLDER: &str = "kmod/bpf";

/// Each with the instructions that it needs: v3 has atomics that return what was there (Linux 5.12).
const PROGRAMS: [(&str, &str); 2] = [("processes", "v1"), ("traffic", "v3")];

fn main() {
    let crate_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let Some(root) = crate_dir.ancestors().nth(2) else { panic!("{} has no root", crate_dir.display()) };
    println!("cargo::rerun-if-changed={}", root.join(FOLDER).display());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    for (program, cpu) in PROGRAMS {
        compile(root, &format!("{FOLDER}/{program}.bpf.c"), cpu, &out.join(program).with_extension("bpf.o"));
    }
}

fn compile(root: &Path, source: &str, cpu: &str, out: &Path) {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let mut clang = Command::new("clang");
    // Debian keeps what <linux/types.h> needs in a folder of the architecture.
    clang
        .args(["-target", "bpf", "-O2", "-g", "-Wall", "-Werror"])
        .arg(format!("-mcpu={cpu}"))
        .arg(format!("-I/usr/include/{arch}-linux-gnu"));
    clang.arg(format!("-ffile-prefix-map={}=.", root.display())).arg("-fdebug-compilation-dir=.");
    clang.current_dir(root).args(["-c", source, "-o"]).arg(out);
    match clang.status() {
        Ok(status) if status.success() => (),
        Ok(status) => panic!(
            "clang cannot compile {source}: {status}, see above: install libbpf-dev if its headers are missing"
        ),
        Err(error) => panic!(
            "clang cannot be started: {error}: install clang and libbpf-dev, or run setup/install build"
        ),
    }
}
