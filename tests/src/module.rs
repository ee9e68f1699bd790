//! The kernel module: building it for the kernels that it is tested on, and what a kernel says when something is wrong.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fetched;

/// What a kernel says when something is wrong in it.
const TROUBLES: &[&str] = &[
    "WARNING:",
    "BUG:",
    "BUG gridos",
    "BUG kmalloc",
    "Oops",
    "kernel BUG",
    "general protection",
    "Call Trace",
    "INFO: task",
    "INFO: rcu",
    "INFO: possible",
    "INFO: lockdep",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "suspicious RCU usage",
    "sleeping function called",
    "scheduling while atomic",
    "Bad page",
    "Object already free",
    "Objects remaining",
    "refcount_t:",
    "UBSAN:",
    "KASAN:",
    "unreferenced object",
    "protection fault",
    "stack-protector",
];

/// The lines in which a kernel says that something is wrong.
pub fn troubles(messages: &str) -> Vec<&str> {
    messages.lines().filter(|line| TROUBLES.iter().any(|trouble| line.contains(trouble))).collect()
}

/// The folder of the repository in which the module is.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kmod").canonicalize().expect("kmod/ is in the repository")
}

/// Builds the module from the sources in this folder, without a warning.
pub fn make(folder: &Path, headers: &Path) -> PathBuf {
    let output = Command::new("make")
        .args(["-s", "CC=gcc", "W=1"])
        .arg(format!("KDIR={}", headers.display()))
        .current_dir(folder)
        .output()
        .expect("make");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("warning:"), "{said}");
    let module = folder.join("gridos.ko");
    assert!(module.exists(), "{said}");
    module
}

/// Builds the module for a kernel below this folder, as two kernels may be tested at once.
///
/// # Errors
/// That the kernel's headers were not fetched.
pub fn build(version: &str, folder: &Path) -> Result<PathBuf, String> {
    let headers = fetched(&format!("kernels/{version}/build"))?;
    let copied = Command::new("cp").arg("-r").arg(sources()).arg(folder.join("kmod")).status();
    assert!(copied.expect("cp").success());
    Ok(make(&folder.join("kmod"), &headers))
}
