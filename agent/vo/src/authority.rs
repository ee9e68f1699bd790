//! The VO's certificate authority. It lives on the founding node, in a folder of its own:
//!
//! ```text
//! ca.key       the CA's private key, PKCS #8 (0600)
//! ca.crt       the CA's certificate
//! state.json   the records (0600); the folder is an authority once this file exists
//! ```
//!
//! The life of a token:
//!
//! ```text
//!            redeem, first key                  7 days later
//! minted ───────────────────────► used by N ─────────────────► forgotten
//!    │                              ▲   │ redeem, same key: N again
//!    │ its time is over             └───┘ redeem, other key: refused
//!    └──────────────────────────► expired ───────────────────► forgotten
//! ```

mod errors;
mod records;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use libgrid::ids::NodeId;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

pub use self::errors::{MintError, OpenError, RedeemError, RenewError, RevokeError};
use self::records::{ReadError, Records, Used};
use crate::certificate::{
    Admission, IssueError, LIFETIME, Role, ServerName, Subject, UserName, issue_ca, issue_node, issue_user,
    public_key,
};
use crate::files::{self, FileError};
use crate::key::{NodeKey, sha256};
use crate::name::{check_node_name, check_vo_name};
use crate::revocation::RevocationList;
use crate::time::seconds;
use crate::token::{MAX_ADDRS, Token};
use crate::verify::PeerId;

const KEY: &str = "ca.key";
const CERTIFICATE: &str = "ca.crt";

/// The CA of a VO.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    key: NodeKey,
    ca: CertificateDer<'static>,
    records: Records,
    lifetime: Duration,
}

impl Authority {
    /// Founds a VO: makes its CA in `dir`. A crash before the end leaves no authority.
    ///
    /// # Errors
    /// Any [`OpenError`] but `Missing`.
    pub fn create(dir: &Path, vo: &str, now: SystemTime) -> Result<Self, OpenError> {
        check_vo_name(vo)?;
        files::make_dir(dir)?;
        if let Some(found) = load_records(dir)? {
            return Err(OpenError::Exists { dir: dir.to_owned(), vo: found.vo });
        }
        let key = NodeKey::generate()?;
        let ca = issue_ca(&key, vo, now)?;
        key.save(dir, KEY)?;
        files::replace(dir, CERTIFICATE, files::PUBLIC, files::pem("CERTIFICATE", &ca).as_bytes())?;
        let records = Records::new(vo);
        records.save(dir)?;
        Ok(Self { dir: dir.to_owned(), key, ca, records, lifetime: LIFETIME })
    }

    /// Opens the authority in `dir`.
    ///
    /// # Errors
    /// [`OpenError::Missing`], [`OpenError::Damaged`] or [`OpenError::File`].
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let damaged = |why: String| OpenError::Damaged { dir: dir.to_owned(), why };
        let records = load_records(dir)?.ok_or_else(|| OpenError::Missing { dir: dir.to_owned() })?;
        let key = NodeKey::load(dir, KEY)?.ok_or_else(|| damaged(format!("{KEY} is missing")))?;
        let pem = files::read(dir, CERTIFICATE)?;
        let pem = pem.ok_or_else(|| damaged(format!("{CERTIFICATE} is missing")))?;
        let ca = CertificateDer::from_pem_slice(&pem)
            .map_err(|error| damaged(format!("{CERTIFICATE}: {error}")))?;
        if public_key(&ca) != Some(key.public_key()) {
            return Err(damaged(format!("{KEY} and {CERTIFICATE} do not belong together")));
        }
        Ok(Self { dir: dir.to_owned(), key, ca, records, lifetime: LIFETIME })
    }

    /// Issues certificates of this lifetime from now on, instead of [`LIFETIME`]; at least a second, at most a year.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime.clamp(Duration::from_secs(1), Duration::from_secs(366 * 24 * 3600));
        self
    }

    /// The VO's name.
    pub fn vo(&self) -> &str {
        &self.records.vo
    }

    /// The CA's certificate.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// How many tokens can still be used.
    pub fn outstanding_tokens(&self, now: SystemTime) -> usize {
        self.records.outstanding(seconds(now))
    }

    /// Makes a token that lets one node join, naming where this authority answers.
    ///
    /// # Errors
    /// Any [`MintError`].
    pub fn mint(
        &mut self,
        addrs: &[SocketAddr],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Token, MintError> {
        if !(1..=MAX_ADDRS).contains(&addrs.len()) {
            return Err(MintError::Addresses { count: addrs.len() });
        }
        if lifetime.as_secs() == 0 {
            return Err(MintError::Lifetime);
        }
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| MintError::Random)?;
        let expires = seconds(now).saturating_add(lifetime.as_secs());
        let token = Token::new(self.vo(), addrs, sha256(&self.ca), expires, seed);
        let public = NodeKey::from_seed(&seed)?.public_key();
        let mut next = self.records.clone();
        next.forget_old_tokens(seconds(now));
        next.add_token(&public, expires);
        self.commit(next)?;
        Ok(token)
    }

    /// Whether the authority minted a token with this public key and has not forgotten it. Only its bearer gets
    /// past the handshake; whether the token still lets anybody in is told by [`Authority::redeem`].
    pub fn knows_token(&self, token: &[u8; 32]) -> bool {
        self.records.token(token).is_some()
    }

    /// Admits a node without a token: the founder's first node, with all roles.
    ///
    /// # Errors
    /// [`RedeemError`] without those about tokens.
    pub fn admit(
        &mut self,
        public_key: [u8; 32],
        name: &str,
        roles: &[Role],
        now: SystemTime,
    ) -> Result<Admission, RedeemError> {
        check_node_name(name)?;
        let mut next = self.records.clone();
        let node = self.number(&mut next, name, roles, now)?;
        let admission = self.issue(node, name, roles, public_key, now)?;
        self.commit(next)?;
        Ok(admission)
    }

    /// Admits the bearer of a token as a node with a new number. The same node key may ask again.
    ///
    /// # Errors
    /// Any [`RedeemError`]; nothing changed then.
    pub fn redeem(
        &mut self,
        token: &[u8; 32],
        public_key: [u8; 32],
        name: &str,
        now: SystemTime,
    ) -> Result<Admission, RedeemError> {
        let vo = || self.records.vo.clone();
        let minted = self.records.token(token).ok_or_else(|| RedeemError::Unknown { vo: vo() })?;
        if let Some(used) = &minted.used {
            return self.redeem_again(used, public_key, now);
        }
        if minted.expires <= seconds(now) {
            return Err(RedeemError::Expired { at: minted.expires });
        }
        check_node_name(name)?;
        let roles = [Role::Node];
        let mut next = self.records.clone();
        let node = self.number(&mut next, name, &roles, now)?;
        let used = Used { node: node.0, key: records::text(&public_key), at: seconds(now) };
        next.use_token(token, used);
        next.forget_old_tokens(seconds(now));
        let admission = self.issue(node, name, &roles, public_key, now)?;
        self.commit(next)?;
        Ok(admission)
    }

    /// A certificate that lives on, for a node that showed its present one.
    ///
    /// # Errors
    /// Any [`RenewError`].
    pub fn renew(
        &self,
        peer: &PeerId,
        public_key: [u8; 32],
        now: SystemTime,
    ) -> Result<Admission, RenewError> {
        let node = peer.node;
        let known = self.records.nodes.get(&node.0);
        let known = known.ok_or_else(|| RenewError::Unknown { vo: self.records.vo.clone(), node })?;
        if known.revoked {
            return Err(RenewError::Revoked { node });
        }
        Ok(self.issue(node, &known.name, &known.roles, public_key, now)?)
    }

    /// A certificate for a user of a node, which vouches for them. With `server` names it is good for a server of that
    /// node, too; a node can have its own name there, and addresses, which nobody but it can know to be its own.
    ///
    /// # Errors
    /// Any [`RenewError`].
    pub fn certify(
        &self,
        node: NodeId,
        user: &str,
        addresses: Option<&[IpAddr]>,
        public_key: [u8; 32],
        now: SystemTime,
    ) -> Result<Admission, RenewError> {
        let known = self.records.nodes.get(&node.0);
        let known = known.ok_or_else(|| RenewError::Unknown { vo: self.records.vo.clone(), node })?;
        if known.revoked {
            return Err(RenewError::Revoked { node });
        }
        let user = UserName::new(&known.name, user)?;
        let names: Vec<ServerName> = match addresses {
            None => Vec::new(),
            Some(addresses) => std::iter::once(ServerName::Dns(known.name.clone()))
                .chain(addresses.iter().take(MAX_ADDRS).copied().map(ServerName::Address))
                .collect(),
        };
        let when = (self.lifetime, now);
        let cert = issue_user(&self.key, &self.records.vo, &user, &names, public_key, when)?;
        Ok(Admission { node, cert_der: cert.to_vec(), ca_der: self.ca.to_vec() })
    }

    /// Evicts a node: signs the list that makes all others refuse it. Revoking twice is no error.
    ///
    /// # Errors
    /// Any [`RevokeError`].
    pub fn revoke(&mut self, node: NodeId) -> Result<RevocationList, RevokeError> {
        let vo = self.records.vo.clone();
        let mut next = self.records.clone();
        let Some(known) = next.nodes.get_mut(&node.0) else {
            return Err(RevokeError::Unknown { vo, node });
        };
        if known.roles.contains(&Role::Authority) {
            return Err(RevokeError::Authority { vo, node });
        }
        if !known.revoked {
            known.revoked = true;
            next.revocations += 1;
            self.commit(next)?;
        }
        self.revocations()
    }

    /// The list as it stands, signed.
    ///
    /// # Errors
    /// [`RevokeError::Sign`].
    pub fn revocations(&self) -> Result<RevocationList, RevokeError> {
        let evicted = self.records.nodes.iter().filter(|(_, node)| node.revoked);
        let evicted = evicted.map(|(number, _)| NodeId(*number)).collect();
        RevocationList::sign(&self.key, &self.records.vo, self.records.revocations, evicted)
            .map_err(|error| RevokeError::Sign(error.to_string()))
    }

    fn redeem_again(
        &self,
        used: &Used,
        public_key: [u8; 32],
        now: SystemTime,
    ) -> Result<Admission, RedeemError> {
        let node = NodeId(used.node);
        let known = self.records.nodes.get(&used.node);
        let name = known.map(|known| known.name.clone()).unwrap_or_default();
        match known {
            Some(known) if used.key == records::text(&public_key) => {
                if known.revoked {
                    return Err(RedeemError::Revoked { node });
                }
                Ok(self.issue(node, &name, &known.roles, public_key, now)?)
            }
            _ => Err(RedeemError::Used { at: used.at, node, name }),
        }
    }

    fn number(
        &self,
        next: &mut Records,
        name: &str,
        roles: &[Role],
        now: SystemTime,
    ) -> Result<NodeId, RedeemError> {
        next.admit(name, roles, seconds(now)).ok_or_else(|| RedeemError::Full { vo: self.records.vo.clone() })
    }

    fn issue(
        &self,
        node: NodeId,
        name: &str,
        roles: &[Role],
        public_key: [u8; 32],
        now: SystemTime,
    ) -> Result<Admission, IssueError> {
        let subject = Subject { vo: &self.records.vo, node, name, roles, public_key };
        let cert = issue_node(&self.key, &subject, self.lifetime, now)?;
        Ok(Admission { node, cert_der: cert.to_vec(), ca_der: self.ca.to_vec() })
    }

    /// The next records count once they are on disk.
    fn commit(&mut self, next: Records) -> Result<(), FileError> {
        next.save(&self.dir)?;
        self.records = next;
        Ok(())
    }
}

fn load_records(dir: &Path) -> Result<Option<Records>, OpenError> {
    Records::load(dir).map_err(|error| match error {
        ReadError::File(error) => OpenError::File(error),
        ReadError::Malformed(why) => {
            OpenError::Damaged { dir: dir.to_owned(), why: format!("{}: {why}", records::FILE) }
        }
    })
}
