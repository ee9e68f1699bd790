//! See `functions/ftp_block.rs`.
#![no_main]

#[path = "../functions/ftp_block.rs"]
mod ftp_block;

libfuzzer_sys::fuzz_target!(|data: &[u8]| ftp_block::run(data));
