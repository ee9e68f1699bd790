//! See `functions/job_file.rs`.
#![no_main]

#[path = "../functions/job_file.rs"]
mod job_file;
#[path = "../functions/mutation.rs"]
mod mutation;

libfuzzer_sys::fuzz_target!(|data: &[u8]| job_file::run(data));
