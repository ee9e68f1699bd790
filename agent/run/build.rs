//! `gridos-init` is a static program with its own entrance, without the C library.

fn main() {
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--gc-sections", "-Wl,-z,noexecstack"]
    {
        println!("cargo::rustc-link-arg-bin=gridos-init={argument}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
