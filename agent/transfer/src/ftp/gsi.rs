//! The security of Globus: a GSSAPI context that is TLS 1.2, whose records travel as tokens.
//!
//! ```text
//!  client                                     server
//!   AUTH GSSAPI                            ▶
//!                                          ◀  334
//!   ADAT hello                             ▶
//!                                          ◀  335 ADAT=hello, certificate, ...
//!   ADAT certificate, proof, finished      ▶
//!                                          ◀  335 ADAT=finished
//!   ADAT "0" (as data of the TLS)          ▶  without delegation
//!                                          ◀  235
//!   ADAT "D"                               ▶  with it
//!                                          ◀  335 ADAT=request for a certificate
//!   ADAT certificates                      ▶  a proxy for our key, and those behind it
//!                                          ◀  235
//!   ENC record with a command              ▶
//!                                          ◀  632 record with a reply
//! ```
//!
//! On data connections the records travel as they are (`guard.rs`): who opens the connection is the TLS client. With
//! DCAU alone it sends `0` after the handshake, and data follow in plain; with PROT P, data follow in records.
//!
//! The client of Globus writes the user's CN into its hello as if it were a host's name. rustls ends such a handshake if
//! no host could be called so (`Alice Smith`); then data connections that the client opens need `-nodcau`.

use std::io::{self, Cursor, Read, Write};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};

/// Longest chain of certificates that a client may delegate, in bytes.
const MAX_CHAIN: usize = 64 * 1024;

/// Text of a reply that goes into one record.
const RECORD: usize = 12 * 1024;

/// A handshake over ADAT.
pub(crate) struct Handshake {
    connection: ServerConnection,
    stage: Stage,
}

enum Stage {
    Handshake,
    /// The byte that says whether the client delegates.
    Flag,
    /// We asked for a certificate of this key.
    Certificate(Box<KeyPair>, Vec<u8>),
    Done(Option<Box<Delegated>>),
}

/// What a token led to.
#[derive(Debug)]
pub(crate) enum Progress {
    /// This goes back, and another token is needed.
    More(Vec<u8>),
    /// This goes back, if it is not empty.
    Done(Vec<u8>),
}

/// A proxy that lets the server act for the user on data connections.
#[derive(Debug)]
pub(crate) struct Delegated {
    pub(crate) key: Arc<CertifiedKey>,
}

/// A context that protects commands and replies.
pub(crate) struct Seal {
    connection: ServerConnection,
}

impl Handshake {
    pub(crate) fn new(config: Arc<ServerConfig>) -> Result<Handshake, rustls::Error> {
        Ok(Handshake { connection: ServerConnection::new(config)?, stage: Stage::Handshake })
    }

    /// Takes a token of the client.
    pub(crate) fn take(&mut self, token: &[u8]) -> Result<Progress, String> {
        let data = feed(&mut self.connection, token)?;
        match std::mem::replace(&mut self.stage, Stage::Flag) {
            Stage::Handshake if self.connection.is_handshaking() => {
                self.stage = Stage::Handshake;
                Ok(Progress::More(written(&mut self.connection)?))
            }
            Stage::Handshake | Stage::Flag if data.is_empty() => {
                Ok(Progress::More(written(&mut self.connection)?))
            }
            Stage::Handshake | Stage::Flag => match data.as_slice() {
                b"D" => {
                    let (key, request) = request()?;
                    self.connection.writer().write_all(&request).map_err(|error| error.to_string())?;
                    self.stage = Stage::Certificate(Box::new(key), Vec::new());
                    Ok(Progress::More(written(&mut self.connection)?))
                }
                _ => {
                    self.stage = Stage::Done(None);
                    Ok(Progress::Done(written(&mut self.connection)?))
                }
            },
            Stage::Certificate(key, mut held) => {
                held.extend(data);
                if held.len() > MAX_CHAIN {
                    return Err("the delegated certificates are too long".to_owned());
                }
                match chain(&held)? {
                    None => {
                        self.stage = Stage::Certificate(key, held);
                        Ok(Progress::More(written(&mut self.connection)?))
                    }
                    Some(mut certificates) => {
                        // What signed the proxy is what the client showed.
                        let shown = self.connection.peer_certificates().unwrap_or_default();
                        for one in shown {
                            if !certificates.contains(one) {
                                certificates.push(one.clone().into_owned());
                            }
                        }
                        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(str::to_owned)?;
                        let key = any_supported_type(&key).map_err(|error| error.to_string())?;
                        let key = Arc::new(CertifiedKey::new(certificates, key));
                        self.stage = Stage::Done(Some(Box::new(Delegated { key })));
                        Ok(Progress::Done(written(&mut self.connection)?))
                    }
                }
            }
            Stage::Done(_) => Err("the handshake is over".to_owned()),
        }
    }

    pub(crate) fn finish(self) -> (Seal, Option<Delegated>) {
        let delegated = match self.stage {
            Stage::Done(Some(delegated)) => Some(*delegated),
            _ => None,
        };
        (Seal { connection: self.connection }, delegated)
    }
}

/// A key, and the request for a certificate of it.
fn request() -> Result<(KeyPair, Vec<u8>), String> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
    let mut params = CertificateParams::default();
    // The client takes the key alone, and names the proxy itself.
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "proxy");
    let request = params.serialize_request(&key).map_err(|error| error.to_string())?;
    Ok((key, request.der().to_vec()))
}

/// The certificates, one behind the other, once the last is whole.
fn chain(bytes: &[u8]) -> Result<Option<Vec<CertificateDer<'static>>>, String> {
    let mut rest = bytes;
    let mut certificates = Vec::new();
    while !rest.is_empty() {
        let length = match rest {
            [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
            [0x30, 0x81, length, ..] => 3 + usize::from(*length),
            [0x30] | [0x30, 0x82] | [0x30, 0x82, _] => return Ok(None),
            _ => return Err("what was delegated are no certificates".to_owned()),
        };
        match rest.split_at_checked(length) {
            Some((one, more)) => {
                certificates.push(CertificateDer::from(one.to_vec()));
                rest = more;
            }
            None => return Ok(None),
        }
    }
    Ok(if certificates.is_empty() { None } else { Some(certificates) })
}

/// Gives records to the connection, and takes the data that were in them.
fn feed(connection: &mut ServerConnection, token: &[u8]) -> Result<Vec<u8>, String> {
    let mut cursor = Cursor::new(token);
    let mut data = Vec::new();
    while (cursor.position() as usize) < token.len() {
        connection.read_tls(&mut cursor).map_err(|error| error.to_string())?;
        let state = connection.process_new_packets().map_err(|error| error.to_string())?;
        let mut came = vec![0; state.plaintext_bytes_to_read()];
        connection.reader().read_exact(&mut came).map_err(|error| error.to_string())?;
        data.extend(came);
    }
    Ok(data)
}

fn written(connection: &mut ServerConnection) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).map_err(|error| error.to_string())?;
    }
    Ok(bytes)
}

impl Seal {
    /// The certificates of the client.
    pub(crate) fn peer(&self) -> Vec<CertificateDer<'static>> {
        self.connection
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|one| one.clone().into_owned())
            .collect()
    }

    /// Opens a command.
    pub(crate) fn open(&mut self, token: &[u8]) -> Result<Vec<u8>, String> {
        // A record that only looks like one of ours would end the whole context.
        match token.first() {
            Some(23) => feed(&mut self.connection, token),
            _ => Err("only ENC is opened here: set the client's control protection to private".to_owned()),
        }
    }

    /// Seals a reply of one or more lines: one sealed line.
    pub(crate) fn reply(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut sealed = Vec::new();
        for piece in bytes.chunks(RECORD) {
            self.connection.writer().write_all(piece)?;
            let record = written(&mut self.connection).map_err(io::Error::other)?;
            sealed.extend(record);
        }
        Ok(format!("632 {}\r\n", STANDARD.encode(sealed)).into_bytes())
    }
}
