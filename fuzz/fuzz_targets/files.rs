//! See `functions/files.rs`.
#![no_main]

#[path = "../functions/files.rs"]
mod files;
#[path = "../functions/mutation.rs"]
mod mutation;

libfuzzer_sys::fuzz_target!(|data: &[u8]| files::run(data));
