//! Who the client is: USER and PASS, AUTH TLS, AUTH GSSAPI, and what protects data connections.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libgrid::ftp::command::Command;
use libgrid::ftp::reply::Reply;
use tokio_rustls::TlsAcceptor;

use crate::ftp::config::Anonymous;
use crate::ftp::control::Lost;
use crate::ftp::gsi::{Delegated, Handshake, Progress};
use crate::ftp::guard::Guard;
use crate::ftp::identity::Person;
use crate::ftp::session::{Login, Session, Step};

/// How the session is secured.
#[derive(Default)]
pub(super) struct Security {
    /// Whom a certificate vouched for.
    person: Option<Person>,
    /// The ADATs that have not come to their end.
    handshake: Option<Box<Handshake>>,
    /// GSI: what the client delegated.
    delegated: Option<Arc<Delegated>>,
    gsi: bool,
    pbsz: bool,
    private: bool,
    dcau: Dcau,
}

/// Who must be at the other end of data connections of GSI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Dcau {
    /// Whoever connects.
    None,
    /// The user.
    #[default]
    Own,
    /// This subject.
    Subject(String),
}

impl Security {
    pub(super) fn is_private(&self) -> bool {
        self.private
    }
}

impl Session {
    pub(super) fn how_to_log_in(&self) -> &'static str {
        match (self.server.config.anonymous, self.server.security.is_some()) {
            (Anonymous::No, true) => {
                "log in with a certificate of the VO: AUTH TLS or AUTH GSSAPI, then USER and PASS"
            }
            (Anonymous::No, false) => {
                "nobody can log in: start the server with --anonymous, or with --cert, --key and --ca"
            }
            (_, true) => "log in as anonymous, or with a certificate of the VO: AUTH TLS or AUTH GSSAPI",
            (_, false) => "log in as anonymous",
        }
    }

    pub(super) fn forget_login(&mut self) {
        if let Some(login) = self.login.take() {
            self.server.leave(&login.name);
        }
        self.claimed = None;
    }

    pub(super) async fn user(&mut self, name: &[u8]) -> Step {
        self.forget_login();
        let name = String::from_utf8_lossy(name).trim().to_owned();
        if let Some(person) = &self.security.person {
            // Clients that were told no name say anonymous; those of Globus leave the name to us.
            let free = matches!(name.as_str(), "anonymous" | "ftp" | ":globus-mapping:" | "-");
            if !free && name != person.name {
                let text = format!("the certificate is {}'s, not {name}'s: leave the name out", person.name);
                return self.say(530, text).await;
            }
            let login = Login { name: person.name.clone(), may_write: true, certified: true };
            return self.enter(login, 232).await;
        }
        let anonymous = name.eq_ignore_ascii_case("anonymous") || name.eq_ignore_ascii_case("ftp");
        if !anonymous || self.server.config.anonymous == Anonymous::No {
            return self.say(530, self.how_to_log_in()).await;
        }
        if self.server.config.require_tls && !self.control.is_tls() && !self.control.is_sealed() {
            return self.say(530, "this server takes nobody without TLS: say AUTH TLS first").await;
        }
        self.claimed = Some("anonymous".to_owned());
        self.say(331, "any password will do").await
    }

    pub(super) async fn pass(&mut self) -> Step {
        if self.login.is_some() {
            return self.say(230, "you are logged in").await;
        }
        let Some(name) = self.claimed.take() else {
            return self.say(503, "say USER before PASS").await;
        };
        let may_write = self.server.config.anonymous == Anonymous::Write;
        self.enter(Login { name, may_write, certified: false }, 230).await
    }

    async fn enter(&mut self, login: Login, code: u16) -> Step {
        if !self.server.enter(&login.name) {
            self.say(421, format!("{} has too many sessions on this server: end one", login.name)).await?;
            return Err(Lost::Ended);
        }
        let rights = if login.may_write { "may read and write" } else { "may read" };
        let text = format!("{} is logged in and {rights}", login.name);
        tracing::info!(peer = %self.peer, user = %login.name, certified = login.certified, "logged in");
        self.login = Some(login);
        self.say(code, text).await
    }

    pub(super) async fn auth(&mut self, mechanism: &[u8]) -> Step {
        let Some(security) = self.server.security.clone() else {
            return self.say(502, "this server has no certificate: it was started without --cert").await;
        };
        if self.control.is_tls() || self.control.is_sealed() {
            return self.say(534, "the session is secured already").await;
        }
        if !self.waiting.is_empty() || self.control.has_more() {
            return Err(Lost::Protocol("commands came before the handshake that was asked for"));
        }
        match mechanism {
            b"TLS" | b"TLS-C" | b"SSL" => {
                self.say(234, "begin the TLS handshake").await?;
                let acceptor = TlsAcceptor::from(security.tls.clone());
                let chain = {
                    let connection = self.control.start_tls(&acceptor).await?;
                    connection.peer_certificates().map(<[_]>::to_vec).unwrap_or_default()
                };
                self.forget_login();
                self.security = Security::default();
                if !chain.is_empty() {
                    match security.trust.person(&chain) {
                        Ok(person) => self.security.person = Some(person),
                        Err(error) => {
                            tracing::info!(peer = %self.peer, %error, "a certificate without a user")
                        }
                    }
                }
                Ok(())
            }
            b"GSSAPI" => match security.accept_gsi() {
                Ok(handshake) => {
                    self.control.expect_tokens();
                    self.security.handshake = Some(Box::new(handshake));
                    self.say(334, "send ADAT").await
                }
                Err(error) => self.say(431, format!("GSSAPI cannot be used: {error}")).await,
            },
            _ => self.say(504, "only AUTH TLS and AUTH GSSAPI").await,
        }
    }

    pub(super) async fn adat(&mut self, token: &[u8]) -> Step {
        let Some(mut handshake) = self.security.handshake.take() else {
            return self.say(503, "say AUTH GSSAPI before ADAT").await;
        };
        let Some(security) = self.server.security.clone() else {
            return self.say(503, "say AUTH GSSAPI before ADAT").await;
        };
        let Ok(token) = STANDARD.decode(token) else {
            return self.say(501, "the token is not base64").await;
        };
        match handshake.take(&token) {
            Ok(Progress::More(answer)) => {
                self.security.handshake = Some(handshake);
                self.say(335, format!("ADAT={}", STANDARD.encode(answer))).await
            }
            Ok(Progress::Done(answer)) => {
                let (seal, delegated) = handshake.finish();
                let person = match security.trust.person(&seal.peer()) {
                    Ok(person) => person,
                    Err(error) => return self.say(535, error.to_string()).await,
                };
                if answer.is_empty() {
                    self.say(235, format!("{} is known", person.name)).await?;
                } else {
                    self.say(235, format!("ADAT={}", STANDARD.encode(answer))).await?;
                }
                self.forget_login();
                self.security = Security {
                    person: Some(person),
                    delegated: delegated.map(Arc::new),
                    gsi: true,
                    ..Security::default()
                };
                self.control.set_seal(seal);
                Ok(())
            }
            Err(error) => self.say(535, format!("the GSSAPI handshake failed: {error}")).await,
        }
    }

    /// Opens a sealed command; others go through as they are. With GSI, a plain command is refused: somebody on the
    /// way may have put it there.
    pub(super) async fn unsealed(&mut self, command: Command) -> Result<Option<Command>, Lost> {
        let (Command::Mic(token) | Command::Enc(token) | Command::Conf(token)) = &command else {
            if self.control.is_sealed() && !matches!(command, Command::Quit | Command::Abor) {
                self.say(533, "the session is secured: send commands with ENC or MIC").await?;
                return Ok(None);
            }
            return Ok(Some(command));
        };
        let Some(seal) = self.control.seal() else {
            self.say(503, "say AUTH GSSAPI first").await?;
            return Ok(None);
        };
        let opened =
            STANDARD.decode(token).map_err(|error| error.to_string()).and_then(|token| seal.open(&token));
        let line = match opened {
            Ok(line) => line,
            Err(why) => {
                self.say(535, format!("the protected command cannot be opened: {why}")).await?;
                return Ok(None);
            }
        };
        let line = line.strip_suffix(&[0]).unwrap_or(&line);
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match Command::parse(line) {
            Ok(Command::Mic(_) | Command::Enc(_) | Command::Conf(_)) => {
                self.say(501, "a protected command inside a protected command").await?;
                Ok(None)
            }
            Ok(command) => Ok(Some(command)),
            Err(error) => {
                self.control.send(&Reply::new(error.code(), error.to_string())).await?;
                Ok(None)
            }
        }
    }

    fn is_secured(&self) -> bool {
        self.control.is_tls() || self.control.is_sealed()
    }

    pub(super) async fn pbsz(&mut self) -> Step {
        if !self.is_secured() {
            return self.say(503, "say AUTH first").await;
        }
        self.security.pbsz = true;
        // Blocks of TLS have their own length.
        self.say(200, "PBSZ=0").await
    }

    pub(super) async fn prot(&mut self, level: u8) -> Step {
        if !self.is_secured() || (!self.security.pbsz && !self.security.gsi) {
            return self.say(503, "say AUTH and PBSZ first").await;
        }
        match level {
            b'C' if self.server.config.require_tls => {
                return self.say(534, "this server was started with --require-tls: only PROT P").await;
            }
            b'C' => self.security.private = false,
            b'P' => self.security.private = true,
            _ => return self.say(536, "only PROT C and P").await,
        }
        self.data.forget_idle();
        self.say(200, "ok").await
    }

    pub(super) async fn dcau(&mut self, mode: u8, subject: Option<Vec<u8>>) -> Step {
        if !self.security.gsi {
            // Without GSI there is nothing to authenticate with, and clients ask for that.
            return match mode {
                b'N' => self.say(200, "ok").await,
                _ => self.say(503, "DCAU needs AUTH GSSAPI").await,
            };
        }
        self.security.dcau = match (mode, subject) {
            (b'N', _) => Dcau::None,
            (b'A', _) => Dcau::Own,
            (b'S', Some(subject)) => Dcau::Subject(String::from_utf8_lossy(&subject).into_owned()),
            _ => return self.say(504, "only DCAU N, A and S with a subject").await,
        };
        self.data.forget_idle();
        self.say(200, "ok").await
    }

    /// What protects the data connections of this session.
    pub(super) fn guard(&self) -> Guard {
        let state = &self.security;
        let Some(security) = &self.server.security else { return Guard::Plain };
        if state.gsi {
            let expect = match (&state.dcau, &state.person) {
                // PROT P without an identity would hide the data from nobody.
                (Dcau::None, _) if !state.private => return Guard::Plain,
                (Dcau::None, _) => None,
                (Dcau::Subject(subject), _) => Some(subject.clone()),
                (Dcau::Own, person) => {
                    Some(person.as_ref().map(|person| person.subject.clone()).unwrap_or_default())
                }
            };
            return Guard::Gsi {
                security: security.clone(),
                delegated: state.delegated.clone(),
                expect,
                private: state.private,
            };
        }
        if !state.private {
            return Guard::Plain;
        }
        let leaf = state.person.as_ref().map(|person| person.leaf.clone());
        Guard::Tls { security: security.clone(), leaf }
    }

    /// Whether data may go without protection.
    pub(super) fn must_protect(&self) -> bool {
        self.server.config.require_tls && !self.security.private
    }
}
