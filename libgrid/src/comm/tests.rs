//! Streams over a network that loses, repeats and reorders, in virtual time.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::packet::{MAX_BODY, Packet, packet};
use super::stream::{Broken, Stream, UNSENT, WINDOW};
use super::{MAX_DATAGRAM, MAX_MESSAGE};
use crate::ids::Gpid;
use crate::wire;

const NAMES: [u64; 2] = [1000, 2000];

fn peer() -> Gpid {
    "1.2".parse().unwrap()
}

struct Network {
    rng: StdRng,
    now: Duration,
    ends: [Stream; 2],
    under_way: Vec<(Duration, usize, Vec<u8>)>,
    /// Chances to be lost and to come twice.
    loss: f64,
    twice: f64,
    packets: u64,
}

impl Network {
    fn new(seed: u64, loss: f64, twice: f64) -> Self {
        let end = |name| Stream::new(Duration::ZERO, peer(), name);
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: Duration::ZERO,
            ends: [end(NAMES[0]), end(NAMES[1])],
            under_way: Vec::new(),
            loss,
            twice,
            packets: 0,
        }
    }

    fn send(&mut self, from: usize) {
        while let Some(packet) = self.ends[from].poll(self.now) {
            let bytes = wire::encode(&packet).unwrap();
            assert!(bytes.len() <= MAX_DATAGRAM - 1024, "{}", bytes.len());
            self.packets += 1;
            let copies =
                usize::from(!self.rng.random_bool(self.loss)) + usize::from(self.rng.random_bool(self.twice));
            for _ in 0..copies {
                let delay = Duration::from_micros(self.rng.random_range(50..3000));
                self.under_way.push((self.now + delay, 1 - from, bytes.clone()));
            }
        }
    }

    /// Until the next thing happens; false if nothing will within ten seconds.
    fn step(&mut self) -> Result<bool, Broken> {
        self.send(0);
        self.send(1);
        let arrival = self.under_way.iter().map(|(at, ..)| *at).min();
        let wake = self.ends.iter().filter_map(Stream::wake).min();
        let Some(next) = arrival.into_iter().chain(wake).min() else { return Ok(false) };
        self.now = self.now.max(next);
        while let Some(at) = self.under_way.iter().position(|(at, ..)| *at <= self.now) {
            let (_, to, bytes) = self.under_way.swap_remove(at);
            self.ends[to].receive(self.now, packet(&bytes).unwrap())?;
        }
        Ok(true)
    }

    fn open(&mut self) {
        self.ends[0].knock();
        self.ends[1].knock();
        while !self.ends.iter().all(Stream::is_open) {
            assert!(self.step().unwrap());
        }
    }

    fn settle(&mut self) -> Result<(), Broken> {
        while !self.ends.iter().all(Stream::is_flushed) {
            self.step()?;
            assert!(self.now < Duration::from_secs(3600), "it stands still");
        }
        Ok(())
    }

    fn take_all(&mut self, end: usize) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.ends[end].take(self.now, None)).map(|message| message.bytes).collect()
    }
}

/// A message of this number: its length and content tell which it is.
fn text(number: u64, rng: &mut StdRng) -> Vec<u8> {
    let len = match number % 7 {
        0 => 0,
        1 => rng.random_range(MAX_BODY - 1..MAX_BODY + 2),
        2 => rng.random_range(0..300_000),
        _ => rng.random_range(1..200),
    };
    (0..len).map(|at| (number.wrapping_mul(31) + at as u64 % 251) as u8).collect()
}

#[test]
fn each_message_arrives_once_and_in_order_whatever_the_network_does() {
    for seed in 0..60 {
        let (loss, twice) = [(0.0, 0.0), (0.02, 0.1), (0.2, 0.05), (0.5, 0.5)][seed as usize % 4];
        let mut network = Network::new(seed, loss, twice);
        network.open();
        let mut rng = StdRng::seed_from_u64(seed);
        let mut sent = [Vec::new(), Vec::new()];
        let mut came = [Vec::new(), Vec::new()];
        for number in 0..120 {
            let from = rng.random_range(0..2);
            let message = text(number, &mut rng);
            while !network.ends[from].has_room(message.len()) {
                network.step().unwrap();
                came[0].extend(network.take_all(0));
                came[1].extend(network.take_all(1));
            }
            network.ends[from].push(0, &message);
            sent[from].push(message);
            if rng.random_bool(0.3) {
                network.step().unwrap();
            }
        }
        let mut idle = 0;
        while idle < 3 {
            network.step().unwrap();
            came[0].extend(network.take_all(0));
            came[1].extend(network.take_all(1));
            idle = if network.ends.iter().all(Stream::is_flushed) { idle + 1 } else { 0 };
            assert!(network.now < Duration::from_secs(3600), "seed {seed} stands still");
        }
        assert!(sent[0] == came[1] && sent[1] == came[0], "seed {seed}");
    }
}

#[test]
fn whoever_does_not_read_stops_the_other_and_holds_no_more_than_the_window() {
    let mut network = Network::new(1, 0.05, 0.0);
    network.open();
    let message = vec![7; 10_000];
    let mut taken = 0;
    for _ in 0..100_000 {
        if network.ends[0].has_room(message.len()) {
            network.ends[0].push(3, &message);
            taken += 1;
        }
        network.step().unwrap();
        if network.now > Duration::from_secs(30) {
            break;
        }
    }
    let most = (WINDOW + UNSENT) / message.len() + 1;
    assert!((most / 2..=most).contains(&taken), "{taken} of {most}");
    let before = network.packets;
    let until = network.now + Duration::from_secs(10);
    while network.now < until {
        network.step().unwrap();
    }
    assert!(network.packets - before < 100, "{} packets while nothing can be done", network.packets - before);
    // Once it reads, all goes on.
    let mut came = 0;
    while came < taken {
        came += network.take_all(1).len();
        network.step().unwrap();
    }
    network.settle().unwrap();
}

#[test]
fn the_largest_message_passes_and_tags_are_told_apart() {
    let mut network = Network::new(2, 0.1, 0.1);
    network.open();
    let large: Vec<u8> = (0..MAX_MESSAGE).map(|at| (at % 253) as u8).collect();
    network.ends[0].push(1, b"one");
    network.ends[0].push(2, &large);
    network.ends[0].push(1, b"three");
    network.settle().unwrap();
    let now = network.now;
    assert_eq!(network.ends[1].take(now, Some(2)).unwrap().bytes, large);
    assert!(network.ends[1].take(now, Some(9)).is_none());
    let rest: Vec<_> = network.take_all(1);
    assert_eq!(rest, [b"one".to_vec(), b"three".to_vec()]);
}

/// Exchanges something, goes back, and says whether it was noticed once all of `then` was tried.
fn after_going_back(end: usize, between: [u32; 2], then: [u32; 2]) -> Result<(), Broken> {
    let mut network = Network::new(3, 0.0, 0.0);
    network.open();
    network.ends[0].push(0, b"before");
    network.ends[1].push(0, b"before");
    network.settle()?;
    let settled = network.now + Duration::from_secs(1);
    while network.now < settled {
        network.step()?;
    }
    let old = network.ends[end].clone();
    let push = |network: &mut Network, count: [u32; 2], word: &str| {
        for (from, count) in count.into_iter().enumerate() {
            (0..count).for_each(|n| network.ends[from].push(0, format!("{word} {n}").as_bytes()));
        }
    };
    push(&mut network, between, "lost");
    network.settle()?;
    network.under_way.clear();
    network.ends[end] = old;
    push(&mut network, then, "else");
    let until = network.now + Duration::from_secs(20);
    while network.now < until {
        network.step()?;
    }
    network.settle()
}

#[test]
fn an_end_that_goes_back_in_time_is_noticed_and_only_then() {
    for end in 0..2 {
        assert_eq!(after_going_back(end, [0, 0], [5, 5]), Ok(()), "nothing was exchanged since");
        for between in [[1, 0], [0, 1], [9, 3]] {
            // The same count, fewer, more, and nothing at all: the last is found by asking.
            for then in [between, [0, 0], [1, 1], [20, 0], [0, 20], [20, 20]] {
                assert_eq!(after_going_back(end, between, then), Err(Broken), "{end} {between:?} {then:?}");
            }
        }
    }
}

#[test]
fn a_stream_that_begins_anew_ends_the_old_one_and_old_packets_do_not() {
    let mut network = Network::new(4, 0.0, 0.0);
    network.open();
    network.ends[0].push(0, b"x");
    network.settle().unwrap();
    let now = network.now;
    let mut newer = Stream::new(now, peer(), NAMES[0] + 5);
    newer.knock();
    let first = newer.poll(now).unwrap();
    assert!(network.ends[1].is_renewed_by(&first));
    assert_eq!(network.ends[1].receive(now, first), Err(Broken));
    let mut older = Stream::new(now, peer(), NAMES[0] - 5);
    older.knock();
    let first = older.poll(now).unwrap();
    assert!(!network.ends[1].is_renewed_by(&first));
    assert_eq!(network.ends[1].receive(now, first), Ok(()));
    let answer = network.ends[1].poll(now).unwrap();
    assert_eq!(
        answer,
        Packet::Reset { yours: NAMES[0] - 5, floor: NAMES[0], closed: false, mine: 0, ack: 0 }
    );
    assert_eq!(older.receive(now, answer), Err(Broken));
}

#[test]
fn what_no_endpoint_sends_is_no_packet() {
    let mut stream = Stream::new(Duration::ZERO, peer(), 1);
    stream.knock();
    let Some(Packet::Data(data)) = stream.poll(Duration::ZERO) else { panic!("it knocks") };
    let accepted = |data: super::packet::Data| packet(&wire::encode(&Packet::Data(data)).unwrap()).is_some();
    assert!(accepted(data.clone()));
    let part = |len| super::packet::Part { tag: 0, last: false, bytes: vec![0; len] };
    for wrong in [
        super::packet::Data { mine: 0, ..data.clone() },
        super::packet::Data { parts: vec![part(MAX_BODY + 1)], ..data.clone() },
        super::packet::Data { parts: vec![part(0); 300], ..data.clone() },
        super::packet::Data { first: u64::MAX, ..data.clone() },
    ] {
        assert!(!accepted(wrong));
    }
    assert!(packet(&vec![0; MAX_DATAGRAM + 1]).is_none());
}
