//! Any bytes, read as messages: nothing panics, nothing takes more memory than the limit of a frame allows, and
//! what can be read says the same after another trip.

use std::fmt::Debug;

use libgrid::comm::{self, FromAgent, ToAgent};
use libgrid::control::{Chunk, Input, Request, Response};
use libgrid::pipe::{FromReader, FromWriter};
use libgrid::spec::JobSpec;
use libgrid::wire::{self, Hello, MAX_FRAME};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::memory::peak;
use crate::mutation::mutate;
use crate::samples;

/// What decoding may hold before it has seen an element: one text or buffer as long as a frame may be, and what
/// serde sets aside for a sequence.
const AT_ONCE: usize = MAX_FRAME + (1 << 20);

/// What decoding may hold for each byte that it has read. The worst is a list of empty texts: 24 bytes each, and
/// as much again twice while the list moves to a larger place.
const FOR_EACH_BYTE: usize = 80;

/// What decoding may ever hold: the decoder counts an empty text as 8 bytes, and stops at [`MAX_FRAME`].
const EVER: usize = 12 * MAX_FRAME;

/// The first byte says what to do with the others.
pub(crate) fn run(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    match how % 4 {
        0 => messages(rest),
        1 => stream(rest),
        2 => {
            let (which, edits) = rest.split_first().unwrap_or((&0, &[]));
            let valid = valid();
            messages(&mutate(valid[usize::from(*which) % valid.len()].clone(), edits));
        }
        // A client's whole conversation, damaged.
        _ => stream(&mutate(conversation(), rest)),
    }
}

/// The bytes of every message there is, without their lengths.
fn valid() -> Vec<Vec<u8>> {
    let requests = samples::requests().into_iter().map(|(_, value)| wire::encode(&value));
    let responses = samples::responses().into_iter().map(|(_, value)| wire::encode(&value));
    let inputs = samples::inputs().into_iter().map(|(_, value)| wire::encode(&value));
    let chunks = samples::chunks().into_iter().map(|(_, value)| wire::encode(&value));
    let readers = samples::readers().into_iter().map(|(_, value)| wire::encode(&value));
    let writers = samples::writers().into_iter().map(|(_, value)| wire::encode(&value));
    let datagrams = samples::datagrams().into_iter().map(|(_, bytes)| Ok(bytes));
    requests
        .chain(responses)
        .chain(inputs)
        .chain(chunks)
        .chain(readers)
        .chain(writers)
        .chain(datagrams)
        .map(|bytes| bytes.expect("samples are small"))
        .collect()
}

fn conversation() -> Vec<u8> {
    let mut all = Hello::ours().to_bytes().to_vec();
    for (_, request) in samples::requests() {
        all.extend(wire::frame(&request).expect("samples are small"));
    }
    all
}

fn messages(bytes: &[u8]) {
    message::<Request>(bytes);
    message::<Response>(bytes);
    message::<Chunk>(bytes);
    message::<FromReader>(bytes);
    message::<FromWriter>(bytes);
    message::<Input>(bytes);
    message::<JobSpec>(bytes);
    message::<ToAgent>(bytes);
    message::<FromAgent>(bytes);
    let (_, held) = peak(|| comm::is_packet(bytes));
    assert!(held <= AT_ONCE + FOR_EACH_BYTE * bytes.len(), "a packet took {held} bytes of memory");
}

fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let (value, held) = peak(|| wire::decode::<T>(bytes));
    let limit = EVER.min(AT_ONCE + FOR_EACH_BYTE * bytes.len());
    assert!(held <= limit, "{} bytes took {held} bytes of memory, over {limit}", bytes.len());
    let Ok(value) = value else { return };
    let again = wire::encode(&value).expect("what was read can be sent");
    assert_eq!(wire::decode::<T>(&again).expect("what was sent can be read"), value);
}

/// Reads a greeting and then requests until something is wrong, as the agent does.
fn stream(mut bytes: &[u8]) {
    let whole = bytes.len();
    let (_, held) = peak(|| {
        let greeted = Hello::read(&mut bytes).and_then(Hello::check).is_ok();
        let mut before = bytes.len();
        while greeted && wire::read::<Request>(&mut bytes).is_ok() {
            assert!(bytes.len() < before, "a frame takes up bytes");
            before = bytes.len();
        }
    });
    // The bytes of a frame are held, too, in a place that doubles as they arrive.
    let limit = AT_ONCE + (FOR_EACH_BYTE + 4) * whole;
    assert!(held <= limit, "a stream of {whole} bytes took {held} bytes of memory, over {limit}");
}
