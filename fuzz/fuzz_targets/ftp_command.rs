//! See `functions/ftp_command.rs`.
#![no_main]

#[path = "../functions/ftp_command.rs"]
mod ftp_command;
#[path = "../functions/mutation.rs"]
mod mutation;

libfuzzer_sys::fuzz_target!(|data: &[u8]| ftp_command::run(data));
