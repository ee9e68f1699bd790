//! What joining needs: the VO's certificate authority, tokens, certificates and revocation.
//!
//! ```text
//!  founding node                                   a new node
//!  Authority::create ── CA key, CA certificate
//!  Authority::mint ───── token, one line ────────► Token::from_str
//!                                                  Token::identity: a client certificate made of the seed
//!        ◄──────────── TLS handshake ────────────  the handshake proves that it holds the token;
//!                                                  Token::verify_server: the CA's fingerprint is the token's
//!  Authority::redeem ◄── new public key, name ───  NodeKey::for_joining (kept until it has a certificate)
//!        ───────────────── Admission ───────────►  Credentials::new, save
//!  Authority::renew ◄──── half a lifetime later ─  Credentials::renewed, save
//!  Authority::revoke ─── RevocationList, signed ─► to every node, which refuses those numbers from then on
//! ```
//!
//! All keys are Ed25519. A node's certificate names it in exactly one URI, `spiffe://VO/node/NUMBER`; the
//! node's name is the subject's CN, its roles are the OU, separated by commas. Certificates live for
//! [`LIFETIME`], so that a node that nobody renews is out within a day even where no list reached.
//!
//! A token's seed is the private half of a key pair of which the authority keeps only the public half: whoever
//! reads the authority's records cannot join with them. A token is used up in the same write that gives out
//! the node's number, before anything is answered, so a crash at any point never lets two nodes in with it;
//! the same new key may ask again, so a broken link never costs a token.
//!
//! Nothing here does network I/O or reads the clock: the daemon passes `now`.
#![forbid(unsafe_code)]

mod authority;
mod certificate;
mod credentials;
mod files;
mod key;
mod name;
mod revocation;
mod time;
mod token;
mod verify;

pub use authority::{Authority, MintError, OpenError, RedeemError, RenewError, RevokeError};
pub use certificate::{Admission, IssueError, LIFETIME, Role, SKEW, ServerName, UserName, public_key};
pub use credentials::{Credentials, CredentialsError};
pub use files::{FileError, pem};
pub use key::{KeyError, NodeKey};
pub use name::{NameError, check_node_name, check_vo_name};
pub use revocation::{RevocationError, RevocationList};
pub use token::{MAX_ADDRS, Token, TokenError, token_public_key};
pub use verify::{PeerId, VerifyError, verify_peer};
