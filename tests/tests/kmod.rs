//! The kernel module, on the kernels of Debian 12, of its backports and of Debian 13's, each in a virtual machine.
//!
//! The module is built for the kernel from its headers (`setup/install test` fetches both), and all is tried that
//! [`grid_tests::trial`] knows. `kasan.rs` does the same on a kernel that watches itself.

use std::path::PathBuf;
use std::process::Command;

use grid_tests::module::{build, make, sources, troubles};
use grid_tests::trial::{Watch, try_all};
use grid_tests::{Machine, fetched, skipped};

/// The module has the version of all else.
const VERSION: &str = env!("CARGO_PKG_VERSION");

fn works_on(version: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ready = || Ok::<_, String>((Machine::with_kernel(version)?, build(version, folder.path())?));
    let kernel = format!("Linux {version}");
    match ready() {
        Ok((machine, module)) => drop(try_all(&machine, &module, &kernel, &Watch::default())),
        Err(why) => skipped(&format!("the module on {kernel}"), &why),
    }
}

#[test]
fn the_module_works_on_linux_6_1() {
    works_on("6.1");
}

#[test]
fn the_module_works_on_linux_6_12() {
    works_on("6.12");
}

/// The newest that a stable Debian has, of the backports of Debian 13.
#[test]
fn the_module_works_on_the_newest_linux() {
    works_on("newest");
}

/// What DKMS does: it unpacks the package, and builds what `dkms.conf` says.
#[test]
fn the_package_has_all_that_builds_the_module() {
    let name = "the package of the module";
    let Ok(headers) = fetched("kernels/6.1/build") else {
        return skipped(name, "there are no kernel headers: setup/install test fetches them");
    };
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        return skipped(name, "there is no dpkg-deb");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("root");
    let run = |command: &mut Command| {
        let output = command.output().expect("a command");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    run(Command::new("make")
        .arg("deb")
        .arg(format!("DEB_DIR={}", folder.path().display()))
        .current_dir(sources()));
    let package = folder.path().join(format!("gridos-dkms_{VERSION}_all.deb"));
    run(Command::new("dpkg-deb").arg("-x").args([&package, &root]));
    let scripts = folder.path().join("scripts");
    run(Command::new("dpkg-deb").arg("-e").args([&package, &scripts]));
    let from = root.join("usr/src").join(format!("gridos-{VERSION}"));
    make(&from, &headers);
    let read = |path: PathBuf| std::fs::read_to_string(&path).expect("a file of the package");
    let dkms = read(from.join("dkms.conf"));
    assert!(dkms.contains(&format!("PACKAGE_VERSION=\"{VERSION}\"")), "{dkms}");
    for script in ["postinst", "prerm"] {
        let text = read(scripts.join(script));
        assert!(text.contains(&format!("-v {VERSION}")) && !text.contains('@'), "{text}");
        run(Command::new("sh").arg("-n").arg(scripts.join(script)));
    }
}

#[test]
fn messages_of_trouble_are_told_from_others() {
    let quiet = "gridos: loading out-of-tree module taints kernel.\nRun /init as init process\n";
    assert_eq!(troubles(quiet), Vec::<&str>::new());
    for line in [
        "WARNING: CPU: 1 PID: 77 at /build/processes.c:176 gridos_exited+0x1/0x2 [gridos]",
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "BUG gridos_process (Tainted: G): Objects remaining on __kmem_cache_shutdown()",
        "refcount_t: underflow; use-after-free.",
        "INFO: task rmmod:99 blocked for more than 120 seconds.",
    ] {
        let messages = format!("{quiet}{line}\n");
        assert_eq!(troubles(&messages), [line]);
    }
}
