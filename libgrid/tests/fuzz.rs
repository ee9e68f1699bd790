//! The functions of `fuzz/`, for a bounded time: random inputs, and those that once were wrong.
//!
//! Longer runs, guided by coverage: see `fuzz/Cargo.toml`.

#[path = "../../fuzz/functions/ftp_block.rs"]
mod ftp_block;
#[path = "../../fuzz/functions/ftp_command.rs"]
mod ftp_command;
#[path = "../../fuzz/functions/job_file.rs"]
mod job_file;
#[path = "../../fuzz/functions/memory.rs"]
mod memory;
#[path = "../../fuzz/functions/mutation.rs"]
mod mutation;
#[path = "../../fuzz/functions/random.rs"]
mod random;
mod samples;
#[path = "../../fuzz/functions/wire.rs"]
mod wire;

use libgrid::control::{Request, Submission};
use libgrid::spec::JobSpec;
use libgrid::wire::MAX_FRAME;
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::strategy::Strategy;

use self::random::{after, try_all};

/// How many inputs of each sort.
const CASES: u32 = 40_000;

#[test]
fn random_bytes_are_no_message_or_a_whole_one() {
    try_all(CASES, after(0, vec(any::<u8>(), 0..300)), wire::run);
}

#[test]
fn damaged_messages_are_refused_or_read_whole() {
    try_all(CASES, after(2, vec(any::<u8>(), 1..22)), wire::run);
}

#[test]
fn a_random_stream_ends_at_the_first_wrong_frame() {
    try_all(CASES, after(1, vec(any::<u8>(), 0..300)), wire::run);
    try_all(CASES, after(3, vec(any::<u8>(), 0..22)), wire::run);
}

#[test]
fn random_text_is_no_job_file() {
    try_all(CASES, after(255, vec(any::<u8>(), 0..300)), job_file::run);
    // What a keyboard types gets further.
    let typed = "[ -~\n]{0,200}".prop_map(String::into_bytes);
    try_all(CASES, after(255, typed), job_file::run);
}

#[test]
fn a_damaged_job_file_is_refused_with_its_place_or_read_whole() {
    for file in 0..4 {
        try_all(CASES, after(file, vec(any::<u8>(), 1..22)), job_file::run);
    }
}

#[test]
fn random_bytes_on_a_control_connection_are_commands_or_refused() {
    try_all(CASES, after(0, vec(any::<u8>(), 0..300)), ftp_command::run);
    let typed = "([A-Za-z]{3,4} [ -~]{0,20}\r?\n){0,5}".prop_map(String::into_bytes);
    try_all(CASES, after(0, typed), ftp_command::run);
}

#[test]
fn a_damaged_session_is_commands_or_refused() {
    try_all(CASES, after(1, vec(any::<u8>(), 1..22)), ftp_command::run);
}

#[test]
fn a_line_without_an_end_takes_no_more_memory_than_its_limit() {
    let ((), most) = memory::peak(|| ftp_command::run(&[&[0], vec![b'x'; 4 << 20].as_slice()].concat()));
    // The input itself, twice, and one reply's line.
    assert!(most < 10 << 20, "{most} bytes");
}

#[test]
fn random_block_headers_stay_within_a_file() {
    try_all(CASES, vec(any::<u8>(), 0..200), ftp_block::run);
    // Small numbers get further: each header is a byte of flags, a count and an offset.
    let headers = vec((0u8..16, 0u16..999, 0u16..999), 0..12).prop_map(|headers| {
        let header = |(flags, count, offset): (u8, u16, u16)| {
            let flags = if flags < 12 { 0 } else { 1 << (flags - 8) };
            [&[flags], &u64::from(count).to_be_bytes()[..], &u64::from(offset).to_be_bytes()[..]].concat()
        };
        headers.into_iter().flat_map(header).collect()
    });
    try_all(CASES, headers, ftp_block::run);
}

#[test]
fn a_frame_full_of_empty_texts_takes_no_more_memory_than_said() {
    // Words of a byte each on the wire: so many that the decoder gives up, and almost so many.
    for words in [MAX_FRAME - 200, MAX_FRAME / 8 - 200] {
        let mut spec = samples::plain();
        spec.command = vec![String::new(); words];
        let request = Request::Submit(Box::new(Submission::new(spec, "/")));
        let bytes = libgrid::wire::encode(&request).unwrap();
        wire::run(&[&[0], bytes.as_slice()].concat());
    }
}

#[test]
fn deep_nesting_is_refused_before_the_stack_ends() {
    for open in ["[", "{a=", "a.", "[[", "'''"] {
        let text = format!("command = {}", open.repeat(100_000));
        assert!(JobSpec::from_toml(&text).is_err());
        job_file::run(&[&[255], text.as_bytes()].concat());
        job_file::run(&[&[255], open.repeat(100_000).as_bytes()].concat());
    }
}
