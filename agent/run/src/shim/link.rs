//! The shim's end of the connection to the agent: it never blocks, and what the agent does not read in time
//! is bounded.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use libgrid::wire::{self, Hello};

use super::task::write_some;
use crate::protocol::{FromShim, ToShim};

/// An agent that leaves so much unread is taken for dead; it learns everything again when it connects anew.
const MAX_QUEUE: usize = 64 << 20;

/// Bytes of a [`Hello`].
const HELLO: usize = 8;

pub(super) struct Link {
    stream: UnixStream,
    incoming: Vec<u8>,
    greeted: bool,
    outgoing: VecDeque<u8>,
    waits: bool,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let outgoing = VecDeque::from(Hello::ours().to_bytes().to_vec());
        Ok(Self { stream, incoming: Vec::new(), greeted: false, outgoing, waits: false })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn send(&mut self, message: &FromShim) {
        // No message comes near the limit of a frame but `Tasks` of tens of thousands.
        if let Ok(frame) = wire::frame(message) {
            self.outgoing.extend(frame);
        }
    }

    /// What has arrived, and whether the agent is still there.
    pub(super) fn receive(&mut self) -> (Vec<ToShim>, bool) {
        let mut alive = true;
        let mut buffer = [0; 64 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => alive = false,
                Ok(bytes) => {
                    self.incoming.extend_from_slice(&buffer[..bytes]);
                    if bytes == buffer.len() {
                        continue;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => alive = false,
            }
            break;
        }
        let mut messages = Vec::new();
        match self.take(&mut messages) {
            Ok(()) => (messages, alive),
            Err(_) => (messages, false),
        }
    }

    fn take(&mut self, messages: &mut Vec<ToShim>) -> Result<(), wire::WireError> {
        let mut used = 0;
        if !self.greeted {
            let Some(hello) = self.incoming.first_chunk::<HELLO>() else { return Ok(()) };
            Hello::from_bytes(*hello)?.check()?;
            self.greeted = true;
            used = HELLO;
        }
        while let Some(header) = self.incoming[used..].first_chunk::<4>() {
            let len = wire::frame_len(*header)?;
            let Some(body) = self.incoming.get(used + 4..used + 4 + len) else { break };
            messages.push(wire::decode(body)?);
            used += 4 + len;
        }
        self.incoming.drain(..used);
        Ok(())
    }

    /// Sends what it can; false if the agent is gone.
    pub(super) fn flush(&mut self) -> bool {
        let sent = write_some(&mut &self.stream, &mut self.outgoing);
        self.waits = !self.outgoing.is_empty();
        sent.is_ok() && self.outgoing.len() <= MAX_QUEUE
    }

    /// Whether something waits for room in the socket.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }
}
