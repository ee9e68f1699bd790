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
    "suspected memory leaks",
    "ODEBUG:",
    // A watcher that gave up sees nothing.
    "leak detector disabled",
    "turning off the locking correctness validator",
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
    run(Command::new("make").arg(format!("KDIR={}", headers.display())).current_dir(folder));
    folder.join("gridos.ko")
}

fn run(make: &mut Command) {
    let output = make.args(["-s", "CC=gcc", "W=1"]).output().expect("make");
    let said = String::from_utf8_lossy(&output.stderr);
    // No BTF is made here, which is what pahole would do.
    let warns = |line: &str| line.contains("warning:") && !line.contains("pahole version");
    assert!(output.status.success() && !said.lines().any(warns), "{said}");
}

/// Builds the module for a kernel below this folder, as two kernels may be tested at once.
///
/// # Errors
/// That the kernel's headers were not fetched.
pub fn build(version: &str, folder: &Path) -> Result<PathBuf, String> {
    let headers = fetched(&format!("kernels/{version}/build"))?;
    compiler_for(&headers)?;
    copy(&sources(), &folder.join("kmod"));
    Ok(make(&folder.join("kmod"), &headers))
}

/// A kernel's headers pass options to the compiler that an older one than built it may not know.
fn compiler_for(headers: &Path) -> Result<(), String> {
    let config = std::fs::read_to_string(headers.join(".config")).map_err(|error| error.to_string())?;
    let wanted = config.lines().find_map(|line| line.strip_prefix("CONFIG_GCC_VERSION="));
    let wanted: u32 = wanted.and_then(|version| version.parse().ok()).unwrap_or(0) / 10_000;
    let output = Command::new("gcc").arg("-dumpversion").output().map_err(|error| error.to_string())?;
    let has: u32 = String::from_utf8_lossy(&output.stdout)
        .split('.')
        .next()
        .and_then(|n| n.trim().parse().ok())
        .unwrap_or(0);
    match has < wanted {
        true => Err(format!("its headers are for gcc {wanted}, and here is {has}: Debian 13 has it")),
        false => Ok(()),
    }
}

/// The same with another module, whose folder has a `Kbuild` and the module's name.
///
/// # Errors
/// That the kernel's headers were not fetched.
pub fn build_other(sources: &Path, version: &str, folder: &Path) -> Result<PathBuf, String> {
    let headers = fetched(&format!("kernels/{version}/build"))?;
    let name = sources.file_name().expect("a folder with a name");
    let copied = folder.join(name);
    copy(sources, &copied);
    run(Command::new("make").arg("-C").arg(headers).arg(format!("M={}", copied.display())).arg("modules"));
    Ok(copied.join(name).with_extension("ko"))
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").args([from, to]).status();
    assert!(copied.expect("cp").success());
}
