//! See `functions/wire.rs`.
#![no_main]

#[path = "../functions/memory.rs"]
mod memory;
#[path = "../functions/mutation.rs"]
mod mutation;
#[path = "../../libgrid/tests/samples/mod.rs"]
mod samples;
#[path = "../functions/wire.rs"]
mod wire;

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire::run(data));
