//! `gridos-init` is a program with its own entrance that no dynamic linker looks at, and that uses no library.
//!
//! Not `-static`: the standard library, of which it uses nothing, names shared libraries, which GNU ld then refuses.

fn main() {
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-no-pie",
        "-Wl,--no-dynamic-linker",
        "-Wl,--gc-sections",
        "-Wl,-z,noexecstack",
    ] {
        println!("cargo::rustc-link-arg-bin=gridos-init={argument}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
