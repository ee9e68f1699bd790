//! libcriu as bindgen reads it from CRIU's own header, loaded when it is needed and not before.
//!
//! libcriu is a thin client: it starts the program `criu swrk`, and says over a socket what to do. So a machine
//! without CRIU runs everything else, and the library may come from another place than the program. It is loaded by
//! name ([`Criu::new`]); its own dependency, libprotobuf-c, may be loaded first by [`keep_loaded`], from wherever
//! it lies: the dynamic linker takes a library that is loaded already under its name (its SONAME).
//!
//! What libcriu cannot say, because its protocol has no words for it or the library no setter, goes through the
//! program's command line: lazy pages, the page server, `check --feature`.

use std::ffi::OsStr;

/// The name under which every libcriu since 2.0 is found.
pub const SONAME: &str = "libcriu.so.2";

#[expect(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    dead_code,
    unreachable_pub,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "made by bindgen from C"
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::{
    Criu, criu_cg_mode_CRIU_CG_MODE_IGNORE as CRIU_CG_MODE_IGNORE, criu_feature_check,
    criu_network_lock_method_CRIU_NETWORK_LOCK_SKIP as CRIU_NETWORK_LOCK_SKIP, criu_notify_arg_t, criu_opts,
};

/// Loads a library for the rest of the process's life, so that one that is loaded later finds it under its name.
///
/// # Safety
/// The library's initialisers run: it must be what it is taken for.
///
/// # Errors
/// The dynamic linker's sentence.
pub unsafe fn keep_loaded(library: impl AsRef<OsStr>) -> Result<(), libloading::Error> {
    // SAFETY: promised by the caller.
    let library = unsafe { libloading::Library::new(library.as_ref()) }?;
    std::mem::forget(library);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_an_error_with_its_name() {
        // SAFETY: there is no such file, so that nothing runs.
        let missing = unsafe { Criu::new("/nowhere/libcriu.so.2") };
        assert!(missing.err().is_some_and(|error| error.to_string().contains("/nowhere/libcriu.so.2")));
        // SAFETY: as above.
        assert!(unsafe { keep_loaded("/nowhere/libprotobuf-c.so.1") }.is_err());
    }
}
