//! See `functions/pages.rs`.
#![no_main]

#[path = "../functions/memory.rs"]
mod memory;
#[path = "../functions/mutation.rs"]
mod mutation;
#[path = "../functions/pages.rs"]
mod pages;

libfuzzer_sys::fuzz_target!(|data: &[u8]| pages::run(data));
