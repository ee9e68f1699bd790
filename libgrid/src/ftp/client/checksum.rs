//! Checksums of both copies: CKSM (GridFTP), or XSHA256 and its like, which other servers have.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use ring::digest;

use super::{Client, FtpError};
use crate::ftp::reply::Kind;

/// A server makes checksums at least at this rate, in bytes a second; it is waited accordingly.
const SLOWEST: u64 = 16 << 20;

const PIECE: usize = 1 << 20;

/// How to ask for a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// `CKSM NAME 0 -1 path`
    Cksm(&'static str),
    /// `OPTS HASH NAME`, `HASH path` (draft-bryan-ftpext-hash)
    Hash(&'static str, &'static str),
    /// `XNAME path`
    Site(&'static str, &'static str),
}

impl Method {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cksm(name) | Self::Hash(_, name) | Self::Site(_, name) => name,
        }
    }
}

/// The best first.
const KNOWN: [&str; 4] = ["SHA256", "SHA512", "SHA1", "ADLER32"];
const HASHES: [(&str, &str); 3] = [("SHA-256", "SHA256"), ("SHA-512", "SHA512"), ("SHA-1", "SHA1")];
const SITES: [(&str, &str); 3] = [("XSHA256", "SHA256"), ("XSHA512", "SHA512"), ("XSHA1", "SHA1")];

impl Client {
    /// The best checksum that this server can make.
    pub(super) fn checksum_method(&self) -> Result<Method, FtpError> {
        let list = self.features.checksums();
        let cksm = KNOWN.into_iter().find(|known| list.iter().any(|name| name == known));
        let words = self.features.rest("HASH").unwrap_or_default().to_ascii_uppercase();
        let words: Vec<&str> = words.split(';').map(|word| word.trim_end_matches('*').trim()).collect();
        let hash = HASHES.into_iter().find(|(theirs, _)| words.contains(theirs));
        if let (None, Some((theirs, name))) = (cksm, hash) {
            return Ok(Method::Hash(theirs, name));
        }
        let site = || SITES.into_iter().find(|(verb, _)| self.features.has(verb));
        cksm.map(Method::Cksm).or_else(|| site().map(|(verb, name)| Method::Site(verb, name))).ok_or_else(
            || {
                let what = "make a checksum that this client knows: leave the verification out".to_owned();
                FtpError::Unsupported { server: self.server.clone(), what }
            },
        )
    }

    /// The server's checksum of a part of a file, `from..to`, in lower case.
    pub(super) fn remote_checksum(
        &mut self,
        method: Method,
        path: &[u8],
        (from, to): (u64, u64),
        whole: bool,
    ) -> Result<String, FtpError> {
        let limit = self.login.limits.reply + Duration::from_secs((to - from) / SLOWEST);
        let (verb, argument) = match method {
            Method::Cksm(name) => {
                let length = if whole { "-1".to_owned() } else { (to - from).to_string() };
                ("CKSM", [format!("{name} {from} {length} ").as_bytes(), path].concat())
            }
            Method::Hash(theirs, _) if whole => {
                self.control.must("OPTS", format!("HASH {theirs}").as_bytes())?;
                ("HASH", path.to_vec())
            }
            Method::Site(verb, _) if whole => (verb, path.to_vec()),
            Method::Site(verb, _) | Method::Hash(verb, _) => {
                let what =
                    format!("make a checksum of a part of a file ({verb}): leave the verification out");
                return Err(FtpError::Unsupported { server: self.server.clone(), what });
            }
        };
        let reply = self.control.ask_within(limit, verb, &argument)?;
        if reply.kind() != Kind::Done {
            return Err(self.control.refused(verb, reply));
        }
        // Some put it last, some on a line of its own, some in quotes.
        let mut words = reply.text.iter().flat_map(|line| line.split(u8::is_ascii_whitespace));
        let length = match method.name() {
            "SHA256" => 64,
            "SHA512" => 128,
            "SHA1" => 40,
            _ => 8,
        };
        let hex = |word: &&[u8]| word.len() == length && word.iter().all(u8::is_ascii_hexdigit);
        match words.rfind(hex) {
            Some(word) => Ok(String::from_utf8_lossy(word).to_ascii_lowercase()),
            None => Err(self
                .control
                .protocol(format!("its answer to {verb} holds no {}: {reply}", method.name()))),
        }
    }
}

/// The checksum of `from..to` of a file, in lower case.
pub(super) fn local_checksum(method: Method, file: &File, (from, to): (u64, u64)) -> io::Result<String> {
    let algorithm = match method.name() {
        "SHA256" => Some(&digest::SHA256),
        "SHA512" => Some(&digest::SHA512),
        "SHA1" => Some(&digest::SHA1_FOR_LEGACY_USE_ONLY),
        _ => None,
    };
    let mut hash = algorithm.map(digest::Context::new);
    let mut adler = (1u32, 0u32);
    let mut buffer = vec![0; PIECE];
    let mut at = from;
    while at < to {
        let most = usize::try_from(to - at).unwrap_or(PIECE).min(PIECE);
        let came = match file.read_at(&mut buffer[..most], at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(came) => came,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match &mut hash {
            Some(hash) => hash.update(&buffer[..came]),
            None => adler = adler32(adler, &buffer[..came]),
        }
        at += came as u64;
    }
    Ok(match hash {
        Some(hash) => hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
        None => format!("{:08x}", adler.1 << 16 | adler.0),
    })
}

/// RFC 1950, 8.2.
fn adler32((mut a, mut b): (u32, u32), bytes: &[u8]) -> (u32, u32) {
    // So many bytes cannot overflow 32 bits.
    for piece in bytes.chunks(5552) {
        for &byte in piece {
            a += u32::from(byte);
            b += a;
        }
        a %= 65_521;
        b %= 65_521;
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn checksums_are_what_others_make_of_the_same_bytes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"xWikipediax").unwrap();
        let sum = |name| local_checksum(Method::Cksm(name), &file, (1, 10)).unwrap();
        assert_eq!(sum("ADLER32"), "11e60398");
        assert_eq!(sum("SHA1"), "664add438097fbd4307f814de8e62a10f8905588");
        assert!(local_checksum(Method::Cksm("SHA1"), &file, (0, 12)).is_err());
    }
}
