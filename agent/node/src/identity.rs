//! Who this node is in its VO, whom it trusts, and, on the founding node, the authority.
//!
//! One VO has one authority, on the node that founded it, number 1: it makes tokens, admits nodes, renews
//! certificates and revokes them. The list of revoked nodes is signed by the VO's CA, and passed on by whoever
//! has it: to every peer when a connection stands, and to all when it is new.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use grid_link::{Identity as Shown, Peer, Trust};
use grid_vo::{Admission, Authority, Credentials, NodeKey, PeerId, RevocationList, Role, Token, verify_peer};
use libgrid::control::{Failure, Kind};
use libgrid::ids::NodeId;
use libgrid::wire::stream;
use rustls::pki_types::CertificateDer;
use tracing::info;

use crate::config::Config;
use crate::peers::{Admitted, Request};

/// The node that founded the VO and holds its authority.
pub(crate) const FOUNDER: NodeId = NodeId(1);

/// How long a joiner tries.
const JOIN: Duration = Duration::from_secs(10);

/// This node's place in its VO.
pub(crate) struct Identity {
    config: Arc<Config>,
    state: RwLock<State>,
    authority: Option<Mutex<Authority>>,
}

struct State {
    credentials: Credentials,
    revocations: Option<RevocationList>,
}

/// Something about the VO went wrong; the sentence is for the user.
/// What a node does that was put out of its VO.
pub(crate) const REJOIN: &str = "to join again, or another one, gridctl down, remove its state folder, gridctl up, and join with a new token";

pub(crate) fn failure(kind: Kind, error: impl std::fmt::Display) -> Failure {
    Failure::new(kind, error.to_string())
}

impl Identity {
    /// What an earlier start left, if this node is in a VO.
    pub(crate) fn load(config: &Arc<Config>) -> Result<Option<Self>, Failure> {
        let dir = config.vo_dir();
        let internal = |error: &dyn std::fmt::Display| failure(Kind::Internal, error);
        let Some(credentials) = Credentials::load(&dir).map_err(|error| internal(&error))? else {
            return Ok(None);
        };
        let revocations = RevocationList::load(&dir, credentials.ca(), credentials.vo());
        let revocations = revocations.map_err(|error| internal(&error))?;
        let authority = credentials.has(Role::Authority).then(|| Authority::open(&authority_dir(config)));
        let authority = authority.transpose().map_err(|error| internal(&error))?;
        let lifetime = config.certificates.0;
        let authority = authority.map(|authority| Mutex::new(authority.with_lifetime(lifetime)));
        let state = RwLock::new(State { credentials, revocations });
        Ok(Some(Self { config: config.clone(), state, authority }))
    }

    /// Founds a VO: its CA, and this node as its first.
    pub(crate) fn found(config: &Arc<Config>, vo: &str) -> Result<Self, Failure> {
        let now = SystemTime::now();
        let invalid = |error: &dyn std::fmt::Display| failure(Kind::Invalid, error);
        let dir = authority_dir(config);
        // A crash between making the authority and the node's certificate leaves the former: go on with it.
        let authority = match Authority::open(&dir) {
            Ok(authority) if authority.vo() == vo => authority,
            _ => Authority::create(&dir, vo, now).map_err(|error| invalid(&error))?,
        };
        let mut authority = authority.with_lifetime(config.certificates.0);
        let key = NodeKey::for_joining(&config.vo_dir()).map_err(|error| invalid(&error))?;
        let roles = [Role::Node, Role::Admin, Role::Authority];
        let admission =
            authority.admit(key.public_key(), &config.name, &roles, now).map_err(|error| invalid(&error))?;
        let credentials = Credentials::new(vo, key, &admission, now).map_err(|error| invalid(&error))?;
        credentials.save(&config.vo_dir()).map_err(|error| failure(Kind::Internal, error))?;
        info!(vo, "vo_founded");
        let state = RwLock::new(State { credentials, revocations: None });
        Ok(Self { config: config.clone(), state, authority: Some(Mutex::new(authority)) })
    }

    /// Joins the VO that the token came from. Also returns where its founder listens.
    pub(crate) async fn join(config: &Arc<Config>, line: &str) -> Result<(Self, Vec<SocketAddr>), Failure> {
        let now = SystemTime::now();
        let invalid = |error: &dyn std::fmt::Display| failure(Kind::Invalid, error);
        let token: Token = line.trim().parse().map_err(|error| invalid(&error))?;
        if token.expires() <= now {
            let what = format!("the token for VO {} has expired", token.vo());
            let todo = "ask for another, made with: gridctl token create";
            return Err(Failure::new(Kind::Invalid, format!("{what}: {todo}")));
        }
        let key = NodeKey::for_joining(&config.vo_dir()).map_err(|error| failure(Kind::Internal, error))?;
        let (chain, private) = token.identity().map_err(|error| invalid(&error))?;
        let shown = Shown { chain, key: private };
        let trust = Arc::new(TokenTrust(token.clone()));
        let unavailable = |error: &dyn std::fmt::Display| failure(Kind::Unavailable, error);
        let mut duplex = grid_link::join::dial(token.addrs(), &shown, trust, JOIN)
            .await
            .map_err(|error| unavailable(&error))?;
        let request = Request::Join { public_key: key.public_key(), name: config.name.clone() };
        let answer = async {
            stream::write(&mut duplex, &request).await?;
            stream::read::<Admitted, _>(&mut duplex).await
        };
        let answer = tokio::time::timeout(JOIN, answer).await.map_err(|error| unavailable(&error))?;
        let admission = answer.map_err(|error| unavailable(&error))?.map_err(|why| invalid(&why))?;
        let credentials =
            token.accept(key, &admission, SystemTime::now()).map_err(|error| invalid(&error))?;
        credentials.save(&config.vo_dir()).map_err(|error| failure(Kind::Internal, error))?;
        info!(vo = credentials.vo(), node = %credentials.node(), "vo_joined");
        let state = RwLock::new(State { credentials, revocations: None });
        Ok((Self { config: config.clone(), state, authority: None }, token.addrs().to_vec()))
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn node(&self) -> NodeId {
        self.read(|state| state.credentials.node())
    }

    pub(crate) fn vo(&self) -> String {
        self.read(|state| state.credentials.vo().to_owned())
    }

    pub(crate) fn ends(&self) -> SystemTime {
        self.read(|state| state.credentials.id().not_after)
    }

    /// When to ask for a new certificate.
    pub(crate) fn renewal(&self) -> SystemTime {
        self.read(|state| state.credentials.renewal())
    }

    pub(crate) fn public_key(&self) -> [u8; 32] {
        self.read(|state| state.credentials.public_key())
    }

    /// What to show in handshakes.
    pub(crate) fn shown(&self) -> Shown {
        self.read(|state| Shown { chain: state.credentials.chain(), key: state.credentials.private_key() })
    }

    pub(crate) fn revocations(&self) -> Option<RevocationList> {
        self.read(|state| state.revocations.clone())
    }

    pub(crate) fn is_revoked(&self, node: NodeId) -> bool {
        self.read(|state| state.revocations.as_ref().is_some_and(|list| list.contains(node)))
    }

    /// Refuses what is asked of a node that was put out of its VO.
    pub(crate) fn must_be_of_vo(&self) -> Result<(), Failure> {
        match self.is_revoked(self.node()) {
            true => {
                Err(Failure::new(Kind::State, format!("this node was put out of VO {}: {REJOIN}", self.vo())))
            }
            false => Ok(()),
        }
    }

    pub(crate) fn is_authority(&self) -> bool {
        self.authority.is_some()
    }

    // === the authority ===

    fn authority(&self) -> Result<MutexGuard<'_, Authority>, Failure> {
        let authority = self.authority.as_ref().ok_or_else(|| {
            let who =
                format!("only the node that founded the VO, number {FOUNDER}, can do this: run it there");
            Failure::new(Kind::Denied, who)
        })?;
        Ok(authority.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A token for one more node, which will call at one of these addresses.
    pub(crate) fn mint(&self, addrs: &[SocketAddr], lifetime: Duration) -> Result<String, Failure> {
        let token = self.authority()?.mint(addrs, lifetime, SystemTime::now());
        token.map(|token| token.to_line()).map_err(|error| failure(Kind::Invalid, error))
    }

    /// Answers [`Request::Join`].
    pub(crate) fn redeem(&self, token: &[u8; 32], public_key: [u8; 32], name: &str) -> Admitted {
        let mut authority = self.authority().map_err(|failure| failure.message)?;
        let admission = authority.redeem(token, public_key, name, SystemTime::now());
        admission.map_err(|error| error.to_string())
    }

    /// Answers [`Request::Renew`]; the peer has just proved who it is.
    pub(crate) fn renew(&self, node: NodeId, public_key: [u8; 32]) -> Admitted {
        let authority = self.authority().map_err(|failure| failure.message)?;
        let now = SystemTime::now();
        let peer = PeerId { node, name: String::new(), roles: Vec::new(), not_before: now, not_after: now };
        authority.renew(&peer, public_key, now).map_err(|error| error.to_string())
    }

    /// Answers [`Request::Certify`] for a user of this node; root's is good for a server, too.
    pub(crate) fn certify(
        &self,
        node: NodeId,
        user: &str,
        addresses: Option<&[IpAddr]>,
        public_key: [u8; 32],
    ) -> Admitted {
        let authority = self.authority().map_err(|failure| failure.message)?;
        let issued = authority.certify(node, user, addresses, public_key, SystemTime::now());
        issued.map_err(|error| error.to_string())
    }

    /// Takes a new certificate.
    pub(crate) fn renewed(&self, admission: &Admission) -> Result<(), Failure> {
        let renewed = self.read(|state| state.credentials.renewed(admission, SystemTime::now()));
        let renewed = renewed.map_err(|error| failure(Kind::Internal, error))?;
        renewed.save(&self.config.vo_dir()).map_err(|error| failure(Kind::Internal, error))?;
        self.state.write().unwrap_or_else(PoisonError::into_inner).credentials = renewed;
        Ok(())
    }

    /// Puts a node out of the VO, and returns the list that says so.
    pub(crate) fn revoke(&self, node: NodeId) -> Result<RevocationList, Failure> {
        self.authority()?.revoke(node).map_err(|error| failure(Kind::Invalid, error))
    }

    /// Takes a list of revoked nodes; returns those that are new to us. A list that the CA did not sign, or that
    /// is no newer than ours, changes nothing.
    pub(crate) fn learn(&self, list: RevocationList) -> Result<Vec<NodeId>, Failure> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let known = state.revocations.as_ref().map_or(0, RevocationList::version);
        if list.version() <= known {
            return Ok(Vec::new());
        }
        let invalid = |error: &dyn std::fmt::Display| failure(Kind::Invalid, error);
        list.verify(state.credentials.ca(), state.credentials.vo()).map_err(|error| invalid(&error))?;
        list.save(&self.config.vo_dir()).map_err(|error| invalid(&error))?;
        let old = state.revocations.replace(list.clone());
        Ok(list.nodes().filter(|node| !old.as_ref().is_some_and(|old| old.contains(*node))).collect())
    }
}

fn authority_dir(config: &Config) -> std::path::PathBuf {
    config.vo_dir().join("authority")
}

impl Trust for Identity {
    fn peer(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<Peer, String> {
        let verified = self.read(|state| {
            let revoked = |node| state.revocations.as_ref().is_some_and(|list| list.contains(node));
            verify_peer(state.credentials.ca(), state.credentials.vo(), chain, now, &revoked)
        });
        let refused = match verified {
            Ok(peer) => return Ok(Peer::Node(peer.node)),
            Err(error) => error.to_string(),
        };
        let bearer = chain.first().filter(|_| chain.len() == 1).and_then(grid_vo::token_public_key);
        match (bearer, &self.authority) {
            (Some(token), Some(_))
                if self.authority().is_ok_and(|authority| authority.knows_token(&token)) =>
            {
                Ok(Peer::Bearer(token))
            }
            _ => Err(refused),
        }
    }
}

/// A joiner trusts whoever the token's CA vouches for.
struct TokenTrust(Token);

impl Trust for TokenTrust {
    fn peer(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<Peer, String> {
        self.0.verify_server(chain, now).map(|peer| Peer::Node(peer.node)).map_err(|error| error.to_string())
    }
}

/// Where others reach this node: what its owner says, or else the addresses of its interfaces.
pub(crate) fn addresses(config: &Config, local: SocketAddr) -> io::Result<Vec<SocketAddr>> {
    if !config.advertise.is_empty() {
        return Ok(config.advertise.clone());
    }
    if !local.ip().is_unspecified() {
        return Ok(vec![local]);
    }
    let mut found: Vec<SocketAddr> = nix::ifaddrs::getifaddrs()?
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), local.port())));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), local.port()))))
        })
        .filter(|addr| local.is_ipv6() || addr.is_ipv4())
        // Link-local addresses mean something on one link alone.
        .filter(|addr| !addr.ip().is_loopback() && !is_link_local(addr))
        .take(grid_vo::MAX_ADDRS)
        .collect();
    if found.is_empty() {
        found.push(SocketAddr::from(([127, 0, 0, 1], local.port())));
    }
    Ok(found)
}

fn is_link_local(addr: &SocketAddr) -> bool {
    match addr {
        SocketAddr::V4(v4) => v4.ip().is_link_local(),
        SocketAddr::V6(v6) => v6.ip().is_unicast_link_local(),
    }
}
