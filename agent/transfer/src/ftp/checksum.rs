//! CKSM: checksums of files, read piece by piece on a thread of the pool.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use libgrid::io::ReadAhead;
use md5::{Digest, Md5};
use ring::digest;

use crate::ftp::flight::{Fault, Flight};

/// Bytes that are read at a time.
const PIECE: usize = 256 * 1024;

/// What FEAT says of them: the number is how willingly they are computed, as Globus has it.
pub(crate) const FEATURE: &str = "CKSM MD5:10;ADLER32:10;SHA1:10;SHA256:11;SHA512:12;";

pub(crate) enum Checksum {
    Md5(Md5),
    Adler32(simd_adler32::Adler32),
    Sha(digest::Context),
}

impl Checksum {
    /// By the name that CKSM gives it, in upper case.
    pub(crate) fn named(name: &str) -> Option<Checksum> {
        let sha = |algorithm| Some(Checksum::Sha(digest::Context::new(algorithm)));
        match name {
            "MD5" => Some(Checksum::Md5(Md5::new())),
            "ADLER32" => Some(Checksum::Adler32(simd_adler32::Adler32::new())),
            "SHA1" | "SHA-1" => sha(&digest::SHA1_FOR_LEGACY_USE_ONLY),
            "SHA256" | "SHA-256" => sha(&digest::SHA256),
            "SHA512" | "SHA-512" => sha(&digest::SHA512),
            _ => None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Checksum::Md5(md5) => md5.update(bytes),
            Checksum::Adler32(adler) => adler.write(bytes),
            Checksum::Sha(sha) => sha.update(bytes),
        }
    }

    fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Checksum::Md5(md5) => hex(&md5.finalize()),
            Checksum::Adler32(adler) => format!("{:08x}", adler.finish()),
            Checksum::Sha(sha) => hex(sha.finish().as_ref()),
        }
    }

    /// The checksum of `from..to`, in hexadecimal. Stops when the flight does.
    pub(crate) fn of(
        mut self,
        file: &std::sync::Arc<File>,
        from: u64,
        to: u64,
        flight: &Flight,
        ahead: &ReadAhead,
    ) -> Result<String, Fault> {
        let mut buffer = vec![0; PIECE];
        let mut at = from;
        let mut asked = from;
        while at < to {
            if let Some(why) = flight.stopped() {
                return Err(Fault::Stopped(why));
            }
            if asked < to && at + (4 << 20) > asked {
                let end = to.min(asked + (8 << 20));
                ahead.fill(file, asked..end);
                asked = end;
            }
            let most = usize::try_from(to - at).unwrap_or(PIECE).min(PIECE);
            match file.read_at(&mut buffer[..most], at) {
                Ok(0) => return Err(Fault::File(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => {
                    self.update(&buffer[..read]);
                    flight.add(read as u64);
                    at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(Fault::File(error)),
            }
        }
        Ok(self.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_what_others_compute() {
        let known = [
            ("MD5", "900150983cd24fb0d6963f7d28e17f72"),
            ("ADLER32", "024d0127"),
            ("SHA1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("SHA256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ];
        for (name, sum) in known {
            let mut checksum = Checksum::named(name).unwrap();
            checksum.update(b"a");
            checksum.update(b"bc");
            assert_eq!(checksum.finish(), sum, "{name}");
        }
    }
}
