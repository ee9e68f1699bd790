//! Golden vectors: the bytes of everything that crosses the control socket.
//!
//! `golden.txt` has a line for each value of [`samples`]: its name, and its frame in hexadecimal. Agents and
//! clients of other builds send these bytes, and the records of jobs hold them.

mod samples;

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};

use libgrid::control::{Chunk, Input, Request, Response};
use libgrid::pipe::{FromReader, FromWriter};
use libgrid::spec::JobSpec;
use libgrid::wire::{self, Hello};
use serde::Serialize;
use serde::de::DeserializeOwned;

const GOLDEN: &str = include_str!("golden.txt");

/// A value, and the name of its line.
type Named<T> = Vec<(String, T)>;

fn specs() -> Named<JobSpec> {
    named("spec", vec![("plain", samples::plain()), ("full", samples::spec())])
}
fn requests() -> Named<Request> {
    named("request", samples::requests())
}
fn responses() -> Named<Response> {
    named("response", samples::responses())
}
fn chunks() -> Named<Chunk> {
    named("chunk", samples::chunks())
}
fn inputs() -> Named<Input> {
    named("input", samples::inputs())
}

fn readers() -> Named<FromReader> {
    named("pipe-reader", samples::readers())
}
fn writers() -> Named<FromWriter> {
    named("pipe-writer", samples::writers())
}

/// These are not in frames.
fn datagrams() -> impl Iterator<Item = (String, String)> {
    named("datagram", samples::datagrams()).into_iter().map(|(name, bytes)| (name, hex(&bytes)))
}

/// Values of one name are numbered from the second on.
fn named<T>(what: &str, values: Vec<(&str, T)>) -> Named<T> {
    let mut seen = BTreeMap::new();
    let number = |(name, value)| {
        let count = seen.entry(name).or_insert(0);
        *count += 1;
        let suffix = if *count == 1 { String::new() } else { format!("-{count}") };
        (format!("{what}-{name}{suffix}"), value)
    };
    values.into_iter().map(number).collect()
}

fn lines<T: Serialize>(values: Named<T>) -> impl Iterator<Item = (String, String)> {
    values.into_iter().map(|(name, value)| (name, hex(&wire::frame(&value).expect("samples are small"))))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("a vector is hexadecimal"))
        .collect()
}

fn recorded() -> BTreeMap<&'static str, &'static str> {
    let lines = GOLDEN.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').expect("a line is a name and a vector")).collect()
}

#[test]
fn every_message_has_the_bytes_that_it_had() {
    let head = [
        ("version".to_owned(), wire::VERSION.to_string()),
        ("hello".to_owned(), hex(&Hello::ours().to_bytes())),
    ];
    let now: Vec<_> = head
        .into_iter()
        .chain(lines(specs()))
        .chain(lines(requests()))
        .chain(lines(responses()))
        .chain(lines(chunks()))
        .chain(lines(readers()))
        .chain(lines(writers()))
        .chain(lines(inputs()))
        .chain(datagrams())
        .collect();
    let mut then = recorded();
    let mut wrong = String::new();
    for (name, is) in &now {
        match then.remove(name.as_str()) {
            None => writeln!(wrong, "{name} is new").unwrap(),
            Some(was) if was != is => writeln!(wrong, "{name}\n  was {was}\n  is  {is}").unwrap(),
            Some(_) => (),
        }
    }
    then.keys().for_each(|name| writeln!(wrong, "{name} is gone").unwrap());
    if wrong.is_empty() {
        return;
    }
    let comments = GOLDEN.lines().take_while(|line| line.starts_with('#')).map(str::to_owned);
    let text: Vec<_> = comments.chain(now.iter().map(|(name, hex)| format!("{name} {hex}"))).collect();
    let fresh = concat!(env!("CARGO_TARGET_TMPDIR"), "/golden.txt");
    std::fs::write(fresh, text.join("\n") + "\n").unwrap();
    panic!(
        "the encoding of messages has changed:\n{wrong}\
         A changed vector means that wire::VERSION must change, or agents and clients of different builds \
         misread each other, and agents misread their records. So must it for a new variant, which older ones \
         cannot read. Raise it (and FORMAT in agent/node/src/store.rs, where a job or an end has changed), then: \
         cp {fresh} libgrid/tests/golden.txt"
    );
}

#[test]
fn every_message_comes_out_of_its_recorded_bytes_again() {
    fn check<T: DeserializeOwned + PartialEq + Debug>(values: Named<T>) {
        let recorded = recorded();
        for (name, value) in values {
            let frame = bytes(recorded.get(name.as_str()).unwrap_or_else(|| panic!("{name} has no vector")));
            let mut rest = frame.as_slice();
            let read: T = wire::read(&mut rest).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(read, value, "{name}");
            assert!(rest.is_empty(), "{name} leaves bytes over");
        }
    }
    check(specs());
    check(requests());
    check(responses());
    check(chunks());
    check(readers());
    check(writers());
    check(inputs());
    assert_eq!(Hello::read(&mut bytes(recorded()["hello"]).as_slice()).unwrap(), Hello::ours());
}
