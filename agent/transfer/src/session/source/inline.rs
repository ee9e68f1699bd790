//! What is so little that connections of its own would cost more than it: it goes over the control stream, which the
//! agents encrypt and authenticate, as the one pack that it is.
//!
//! The results of a short task are such. No port is opened, no key made, no thread started.

use std::collections::HashMap;
use std::io::{BufReader, BufWriter};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use libgrid::copy::{Landed, Progress};

use super::sending::pack;
use super::{LeftOut, hear, say};
use crate::session::message::{FromDestination, FromSource, Held, RelPath, Trouble, What};
use crate::session::walk::{self, Found, Unreadable};

/// Bytes and things at most; with the largest extended attributes they still fit a frame.
const BYTES: u64 = 64 << 10;
const ITEMS: usize = 32;

/// All of it, if it is so little, and what of it is missed; the walk ends early if not.
pub(super) fn all(tops: &[Found], lenient: bool) -> Result<Option<(Vec<Found>, LeftOut)>, Trouble> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let fits = AtomicBool::new(true);
    let left_out = LeftOut::new(lenient);
    let mut take = |one: Result<Found, Unreadable>| {
        let Some(one) = left_out.sift(one)? else { return Ok(true) };
        bytes += one.size();
        found.push(one);
        let more = bytes <= BYTES && found.len() <= ITEMS;
        fits.store(more, Ordering::Relaxed);
        Ok(more)
    };
    for top in tops {
        let on = match top.item.what {
            What::Folder => walk::walk(top.clone(), &mut take)?,
            _ => take(Ok(top.clone()))?,
        };
        if !on {
            break;
        }
    }
    Ok(fits.load(Ordering::Relaxed).then_some((found, left_out)))
}

/// Sends it, and hears what came of it.
pub(super) fn send(
    (mut reader, mut writer): (BufReader<UnixStream>, BufWriter<UnixStream>),
    mut found: Vec<Found>,
    mut held: HashMap<RelPath, Held>,
    report: &dyn Fn(Progress),
) -> Result<Landed, Trouble> {
    let of_bytes = found.iter().map(Found::size).sum();
    let of_items = found.len() as u64;
    found.retain(|found| held.remove(&found.item.path).is_none_or(|held| !held.is_whole(found)));
    let skipped = of_items - found.len() as u64;
    let works = u64::from(!found.is_empty());
    let inline = if works > 0 { Some(FromSource::Inline(pack(&mut found)?)) } else { None };
    for message in inline.into_iter().chain([FromSource::End { works, skipped }]) {
        // A destination that is gone by now has said why, and that is heard below.
        if say(&mut writer, &message).is_err() {
            break;
        }
    }
    loop {
        match hear(&mut reader)? {
            FromDestination::Arrived(_) => (),
            FromDestination::Landed(landed) => {
                let (bytes, whole) = (of_bytes, true);
                report(Progress { bytes, of_bytes, of_items, whole, streams: 0, sent_again: 0 });
                return Ok(landed);
            }
            FromDestination::Failed(trouble) => return Err(trouble),
            _ => return Err(Trouble::confused()),
        }
    }
}

impl Held {
    /// Whether this is there already.
    fn is_whole(&self, found: &Found) -> bool {
        let same = self.size == found.size() && self.modified == found.item.modified;
        matches!(found.item.what, What::File { .. }) && same && self.ranges.is_none()
    }
}
