//! Makes the bindings from the `criu.h` that `setup/install build` provides: Debian's `libcriu-dev` where it is new
//! enough, else the one that was unpacked beside the workspace's build.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What the engine calls, and nothing else.
const FUNCTIONS: [&str; 29] = [
    "criu_local_init_opts",
    "criu_local_free_opts",
    "criu_local_set_service_fd",
    "criu_local_set_pid",
    "criu_local_set_config_file",
    "criu_local_set_images_dir_fd",
    "criu_local_set_work_dir_fd",
    "criu_local_set_parent_images",
    "criu_local_set_leave_running",
    "criu_local_set_log_level",
    "criu_local_set_log_file",
    "criu_local_set_manage_cgroups_mode",
    "criu_local_set_timeout",
    "criu_local_set_ghost_limit",
    "criu_local_set_link_remap",
    "criu_local_set_file_locks",
    "criu_local_set_track_mem",
    "criu_local_set_tcp_established",
    "criu_local_set_tcp_close",
    "criu_local_set_network_lock",
    "criu_local_add_external",
    "criu_local_add_inherit_fd",
    "criu_local_set_notify_cb",
    "criu_local_check",
    "criu_local_get_version",
    "criu_local_feature_check",
    "criu_local_dump",
    "criu_local_pre_dump",
    "criu_local_restore",
];

fn main() {
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let Some(include) = include_dir(&out) else {
        println!("cargo::error=there is no criu/criu.h: run setup/install build");
        return;
    };
    let header = include.join("criu/criu.h");
    println!("cargo::rerun-if-changed={}", header.display());
    let mut builder = bindgen::Builder::default()
        .header(header.to_string_lossy())
        .clang_arg(format!("-I{}", include.display()))
        .clang_arg(format!("-I{}", include.join("criu").display()))
        .dynamic_library_name("Criu")
        .dynamic_link_require_all(true)
        .generate_comments(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .wrap_unsafe_ops(true)
        // The protocol's own structures stay libcriu's business.
        .blocklist_type("_?Criu.*|Protobuf.*|protobuf.*")
        .raw_line("pub type CriuNotify = ::std::ffi::c_void;")
        .allowlist_type("criu_cg_mode|criu_network_lock_method|criu_feature_check|criu_notify_arg_t");
    // libclang without clang has no headers of the compiler: GCC's do.
    if let Some(include) = compiler_include() {
        builder = builder.clang_arg(format!("-I{}", include.display()));
    }
    for function in FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    match builder.generate() {
        Ok(bindings) => bindings.write_to_file(out.join("bindings.rs")).expect("OUT_DIR can be written"),
        Err(error) => println!("cargo::error=criu.h cannot be read: {error}"),
    }
}

/// The folder that has `criu/criu.h`.
fn include_dir(out: &Path) -> Option<PathBuf> {
    // OUT_DIR is PROFILE/build/criu-sys-HASH/out below the target folder, or one deeper with --target.
    let unpacked = out.ancestors().skip(4).take(2).map(|target| target.join("criu/include"));
    // The target folder of setup/install, where cargo was given another one.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../target/criu/include");
    let installed = ["/usr/include", "/usr/local/include"].map(PathBuf::from);
    unpacked.chain([workspace]).chain(installed).find(|folder| folder.join("criu/criu.h").exists())
}

fn compiler_include() -> Option<PathBuf> {
    let output = Command::new("gcc").arg("-print-file-name=include").output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(path.trim())).filter(|path| path.is_absolute())
}
