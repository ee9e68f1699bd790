//! What a thread does for a transfer in stream mode: one connection, one run of bytes, whose end is the connection's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use libgrid::io::ReadAhead;

use crate::ftp::ascii::{FromWire, ToWire};
use crate::ftp::channel::Channel;
use crate::ftp::flight::{Fault, Flight};

/// Bytes that are converted at a time.
const PIECE: usize = 64 * 1024;

/// Sends `from..to` of a file and ends the connection.
pub(crate) fn send(
    mut channel: Channel,
    file: &Arc<File>,
    (from, to): (u64, u64),
    ascii: bool,
    flight: &Flight,
    ahead: &ReadAhead,
) -> Result<(), Fault> {
    if ascii {
        send_text(&mut channel, file, (from, to), flight)?;
    } else {
        channel.send_file(file, from, to, flight, Some(ahead))?;
    }
    channel.finish().map_err(Fault::Network)
}

fn send_text(
    channel: &mut Channel,
    file: &File,
    (mut from, to): (u64, u64),
    flight: &Flight,
) -> Result<(), Fault> {
    let (mut text, mut buffer, mut out) = (ToWire::default(), vec![0; PIECE], Vec::new());
    while from < to {
        let most = usize::try_from(to - from).unwrap_or(PIECE).min(PIECE);
        let read = file.read_at(&mut buffer[..most], from).map_err(Fault::File)?;
        if read == 0 {
            return Err(Fault::File(std::io::ErrorKind::UnexpectedEof.into()));
        }
        out.clear();
        text.convert(&buffer[..read], &mut out);
        channel.write_all(&out).map_err(Fault::Network)?;
        from += read as u64;
        flight.add(read as u64);
    }
    channel.flush().map_err(Fault::Network)
}

/// Receives into a file until the connection ends.
pub(crate) fn receive(
    mut channel: Channel,
    file: &File,
    offset: u64,
    ascii: bool,
    flight: &Flight,
) -> Result<(), Fault> {
    let mut at = offset;
    let came = |bytes: u64| {
        flight.add(bytes);
        flight.arrived(at, at + bytes);
        at += bytes;
    };
    if ascii {
        receive_text(&mut channel, file, offset, came)
    } else {
        channel.receive_all(file, offset, came)
    }
}

fn receive_text(
    channel: &mut Channel,
    file: &File,
    offset: u64,
    mut came: impl FnMut(u64),
) -> Result<(), Fault> {
    let (mut text, mut buffer, mut out) = (FromWire::default(), vec![0; PIECE], Vec::new());
    let mut at = offset;
    loop {
        let read = match channel.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            result => result.map_err(Fault::Network)?,
        };
        out.clear();
        if read == 0 {
            text.end(&mut out);
        } else {
            text.convert(&buffer[..read], &mut out);
        }
        file.write_all_at(&out, at).map_err(Fault::File)?;
        at += out.len() as u64;
        came(out.len() as u64);
        if read == 0 {
            return Ok(());
        }
    }
}
