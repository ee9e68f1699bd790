//! A client of FTP and GridFTP servers: files, folders and trees, both ways, and between two servers.
//!
//! ```text
//!   Client ── Control ── commands, replies, markers            control.rs, tls.rs, features.rs
//!     ├─ get, put ── Partial, journal ── one data connection   get.rs, put.rs, local.rs, data.rs
//!     │                               └─ several, MODE E       mode_e.rs
//!     ├─ list, make_folder, rename, …                          files.rs
//!     ├─ get_tree, put_tree: several clients, commands sent ahead   tree/
//!     └─ third_party: the data go from server to server        third_party.rs
//! ```
//!
//! A transfer that breaks is tried again by itself and goes on where it stopped; so does one that is called again
//! later, by another process. What arrives has a hidden name until it is whole. Calls block, and every wait has a
//! limit ([`Limits`]); nothing that a server sends is kept without a bound.
//!
//! ```no_run
//! use libgrid::ftp::client::{Client, FtpUrl, Login, Options};
//!
//! let url: FtpUrl = "ftp://node1:2811/data/run7.h5".parse()?;
//! let mut client = Client::connect(&url, &Login::default())?;
//! client.get(&url.path, "run7.h5".as_ref(), &Options::default(), &mut |_| ())?;
//! client.put("result.h5".as_ref(), b"/data/result.h5", &Options { streams: Some(4), extended: true, ..Options::default() }, &mut |_| ())?;
//! # Ok::<(), libgrid::ftp::client::FtpError>(())
//! ```

mod checksum;
mod control;
mod data;
mod error;
mod features;
mod files;
mod get;
mod local;
mod login;
mod mode_e;
mod moving;
mod put;
mod third_party;
mod tls;
mod tree;
mod url;

pub use error::{FtpError, Party};
pub use features::Features;
pub use login::{Limits, Login, Tls, Trust};
pub use third_party::third_party;
pub use tree::{TreeOptions, TreeReport, get_tree, put_tree};
pub use url::{FtpUrl, UrlError};

use std::time::Duration;

use self::control::{Control, line};
use self::tls::Connector;
use crate::ftp::marker::{Perf, Ranges};
use crate::ftp::reply::Kind;
use crate::io::{Fixed, Path, Plan, Tuner};

/// More data connections than this are not asked for.
const MAX_STREAMS: usize = 64;

/// How to transfer a file.
///
/// ```
/// use libgrid::ftp::client::Options;
/// let options = Options { extended: true, streams: Some(4), ..Options::default() };
/// assert!(options.resume && options.atomic && !options.verify);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub struct Options {
    /// Extended block mode, MODE E of GridFTP: several data connections, and ranges.
    pub extended: bool,
    /// How many data connections, 1 to 64, in extended mode; `None` for as many as the round trip asks for.
    pub streams: Option<usize>,
    /// Let all nodes of the server take part (SPAS, SPOR): the addresses that it names are believed.
    pub striped: bool,
    /// Fixes the buffers of the data connections on both sides, in bytes; `None` leaves them to the kernels.
    pub buffer: Option<usize>,
    /// Only these bytes of the source, `from..to`; they become the whole copy.
    pub range: Option<(u64, u64)>,
    /// Compare checksums afterwards; a server that cannot make any is an error.
    pub verify: bool,
    /// Go on with what came before.
    pub resume: bool,
    /// Sending: use a temporary name on the server, too, and rename at the end. Without it the file itself grows, and
    /// can only be gone on with by the same call.
    pub atomic: bool,
    /// The copy gets the time of the original, where the server can.
    pub times: bool,
    /// The file is on the disk before the call returns.
    pub sync: bool,
    /// How often to try again after a failure that may pass, without any progress in between.
    pub retries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            extended: false,
            streams: None,
            striped: false,
            buffer: None,
            range: None,
            verify: false,
            resume: true,
            atomic: true,
            times: true,
            sync: false,
            retries: 5,
        }
    }
}

/// What a transfer tells while it goes on.
///
/// ```
/// use libgrid::ftp::client::Progress;
/// let tell = |progress: Progress<'_>| if let Progress::Moved { bytes } = progress { println!("{bytes}") };
/// tell(Progress::Moved { bytes: 4096 });
/// ```
#[derive(Debug)]
pub enum Progress<'a> {
    /// It begins, or begins again, with so many bytes there already.
    Begun {
        /// The size of the file, if it is known.
        size: Option<u64>,
        /// What need not be sent again.
        already: u64,
        /// How many data connections were asked for.
        streams: usize,
    },
    /// So many bytes were moved, those that had been there included.
    Moved {
        /// Bytes.
        bytes: u64,
    },
    /// The receiving server has these bytes (reply 111).
    Arrived(&'a Ranges),
    /// A server tells how far it is (reply 112).
    Perf(Perf),
    /// It broke, and is tried again after a while.
    Again {
        /// Why.
        error: &'a FtpError,
        /// How long is waited.
        wait: Duration,
    },
    /// All bytes came, and checksums are compared.
    Verifying,
}

/// What was transferred.
///
/// ```
/// assert_eq!(libgrid::ftp::client::Landed::default().bytes, 0);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Landed {
    /// The size of the copy.
    pub bytes: u64,
    /// How much of it had been there before the call.
    pub resumed: u64,
    /// How often it broke and was gone on with.
    pub interruptions: u32,
    /// The checksum that both sides agreed on: its sort and its hexadecimal form.
    pub checksum: Option<(String, String)>,
}

/// A session with a server. It connects again by itself when the connection broke.
///
/// ```no_run
/// use libgrid::ftp::client::{Client, FtpUrl, Login};
/// let url: FtpUrl = "ftp://node1:2811/data".parse()?;
/// let mut client = Client::connect(&url, &Login::default())?;
/// for entry in client.list(&url.path)? {
///     println!("{}", String::from_utf8_lossy(&entry.name));
/// }
/// # Ok::<(), libgrid::ftp::client::FtpError>(())
/// ```
#[derive(Debug)]
pub struct Client {
    host: String,
    port: u16,
    server: String,
    login: Login,
    connector: Option<Connector>,
    control: Control,
    features: Features,
    extended: bool,
    parallelism: usize,
}

impl Client {
    /// Connects and logs in. User and password of the URL count before those of `login`, and `ftps://` asks for TLS.
    ///
    /// # Errors
    /// [`FtpError::Connect`], [`FtpError::Tls`], [`FtpError::Refused`] when the login is not accepted, and what an
    /// unfit server brings about.
    ///
    /// ```no_run
    /// use libgrid::ftp::client::{Client, Login, Tls};
    /// let login = Login { tls: Some(Tls::default()), ..Login::default() };
    /// let client = Client::connect(&"ftp://node1:2811/".parse()?, &login)?;
    /// # Ok::<(), libgrid::ftp::client::FtpError>(())
    /// ```
    pub fn connect(url: &FtpUrl, login: &Login) -> Result<Self, FtpError> {
        let mut login = login.clone();
        if let Some(user) = &url.user {
            login.user.clone_from(user);
            login.password.clear();
        }
        if let Some(password) = &url.password {
            login.password.clone_from(password);
        }
        if url.tls && login.tls.is_none() {
            login.tls = Some(Tls::default());
        }
        let server = url.server();
        let connector = login.tls.as_ref().map(|tls| Connector::new(&url.host, &server, tls)).transpose()?;
        let (control, features) = session(&url.host, url.port, &server, &login, connector.as_ref())?;
        let host = url.host.clone();
        Ok(Self {
            host,
            port: url.port,
            server,
            login,
            connector,
            control,
            features,
            extended: false,
            parallelism: 0,
        })
    }

    /// Another session like this one.
    ///
    /// # Errors
    /// As [`Client::connect`].
    ///
    /// ```no_run
    /// # fn f(client: &libgrid::ftp::client::Client) -> Result<(), libgrid::ftp::client::FtpError> {
    /// let second = client.another()?;
    /// # Ok(()) }
    /// ```
    pub fn another(&self) -> Result<Self, FtpError> {
        let Self { host, port, server, login, .. } = self;
        // With sessions of TLS of its own: a server takes data connections only that resume the one that asked.
        let connector = login.tls.as_ref().map(|tls| Connector::new(host, server, tls)).transpose()?;
        let (control, features) = session(host, *port, server, login, connector.as_ref())?;
        Ok(Self {
            host: host.clone(),
            port: *port,
            server: server.clone(),
            login: login.clone(),
            connector,
            control,
            features,
            extended: false,
            parallelism: 0,
        })
    }

    /// What the server says that it can.
    ///
    /// ```no_run
    /// # fn f(client: &libgrid::ftp::client::Client) {
    /// println!("{}", client.features().has("MFMT"));
    /// # }
    /// ```
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// The server, as messages name it.
    ///
    /// ```no_run
    /// # fn f(client: &libgrid::ftp::client::Client) {
    /// println!("{}", client.server());
    /// # }
    /// ```
    pub fn server(&self) -> &str {
        &self.server
    }

    /// A connection that can take a command: a new one if the last transfer left the old one unusable.
    fn ready(&mut self) -> Result<(), FtpError> {
        if !self.control.is_idle() {
            *self = self.another()?;
        }
        Ok(())
    }

    /// The URL of a path on this server, for journals and messages.
    fn url_of(&self, path: &[u8]) -> String {
        let url = FtpUrl {
            tls: self.connector.is_some(),
            user: None,
            password: None,
            host: self.host.clone(),
            port: self.port,
            path: path.to_vec(),
        };
        // What two users see at one path may differ.
        format!("{url} as {}", self.login.user.replace(['\n', '\r'], " "))
    }

    /// What TLS data connections are made with; `None` if data go in the clear.
    fn data_tls(&self) -> Option<&Connector> {
        self.connector.as_ref().filter(|_| self.login.tls.as_ref().is_some_and(|tls| tls.private))
    }

    /// How data connections are set up for `size` bytes.
    fn plan(&self, options: &Options, size: u64) -> Plan {
        if !options.extended {
            return Plan { buffer: options.buffer, ..Plan::default() };
        }
        let streams = options.streams.map(|streams| streams.clamp(1, MAX_STREAMS));
        let fixed = Fixed { streams, buffer: options.buffer, ..Fixed::default() };
        // Both ends would have to bear loss, and the other one is not known.
        let path = Path { rtt: self.control.path().rtt, tolerant: false };
        Tuner::new(path, size, MAX_STREAMS, fixed).plan()
    }

    /// Enters the mode that the options ask for.
    fn enter_mode(&mut self, extended: bool) -> Result<(), FtpError> {
        if self.extended == extended {
            return Ok(());
        }
        if extended && self.data_tls().is_some() {
            let what = "encrypt data in extended mode: use stream mode, or leave data in the clear (PROT C)";
            return Err(FtpError::Unsupported { server: self.server.clone(), what: what.to_owned() });
        }
        let reply = self.control.ask("MODE", if extended { b"E" } else { b"S" })?;
        if reply.kind() != Kind::Done {
            if extended {
                let what = format!("do extended mode, it is no GridFTP server ({reply}): use stream mode");
                return Err(FtpError::Unsupported { server: self.server.clone(), what });
            }
            return Err(self.control.refused("MODE S", reply));
        }
        self.extended = extended;
        Ok(())
    }

    /// Says how many connections a sending server shall open, and how large buffers are.
    fn tune(&mut self, plan: &Plan, sends: bool) -> Result<(), FtpError> {
        if sends && self.extended && self.parallelism != plan.streams {
            let text = format!("RETR Parallelism={0},{0},{0};", plan.streams);
            self.control.must("OPTS", text.as_bytes())?;
            self.parallelism = plan.streams;
        }
        if let Some(buffer) = plan.buffer {
            let site = if sends { "RETRBUFSIZE" } else { "STORBUFSIZE" };
            let reply = self.control.ask("SBUF", buffer.to_string().as_bytes())?;
            if reply.kind() != Kind::Done {
                // A wish: the transfer works without it, too.
                self.control.ask("SITE", format!("{site} {buffer}").as_bytes())?;
            }
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.control.quit();
    }
}

/// Connects, secures the connection, logs in, and asks what the server can.
fn session(
    host: &str,
    port: u16,
    server: &str,
    login: &Login,
    connector: Option<&Connector>,
) -> Result<(Control, Features), FtpError> {
    let mut control = Control::connect(host, port, server, &login.limits)?;
    if let Some(connector) = connector {
        let reply = control.ask("AUTH", b"TLS")?;
        if reply.code != 234 {
            let why = format!("the server does not do TLS ({reply})");
            return Err(FtpError::Tls { server: server.to_owned(), why });
        }
        control.secure(connector)?;
    }
    let reply = control.ask("USER", login.user.as_bytes())?;
    match reply.kind() {
        Kind::Done => (),
        Kind::Intermediate => {
            let reply = control.ask("PASS", login.password.as_bytes())?;
            if reply.kind() == Kind::Intermediate {
                let why = "it asks for an account, which this client does not have";
                return Err(control.protocol(why));
            }
            control.done(&line("PASS", b"")?, reply)?;
        }
        _ => {
            return Err(control.refused(&format!("the user {:?}", login.user), reply));
        }
    }
    if connector.is_some() {
        let private = login.tls.as_ref().is_some_and(|tls| tls.private);
        let replies =
            control.batch(&[line("PBSZ", b"0")?, line("PROT", if private { b"P" } else { b"C" })?])?;
        for (reply, what) in replies.into_iter().zip(["PBSZ 0", "PROT"]) {
            control.done(what.as_bytes(), reply)?;
        }
    }
    let mut replies = control.batch(&[line("TYPE", b"I")?, line("FEAT", b"")?])?.into_iter();
    if let Some(reply) = replies.next() {
        control.done(b"TYPE I", reply)?;
    }
    let features = replies.next().map(|reply| Features::parse(&reply)).unwrap_or_default();
    Ok((control, features))
}

/// Tries again after failures that may pass, with growing pauses, until `retries` tries in a row brought nothing.
fn persist(
    retries: u32,
    progress: &mut dyn FnMut(Progress<'_>),
    mut attempt: impl FnMut(u32, &mut dyn FnMut(Progress<'_>)) -> Result<Landed, FtpError>,
) -> Result<Landed, FtpError> {
    let mut in_vain = 0;
    let mut furthest = 0;
    for interruptions in 0u32.. {
        match attempt(interruptions, progress) {
            Ok(landed) => return Ok(Landed { interruptions, ..landed }),
            Err(error) => {
                if let FtpError::Broken { at, .. } = &error
                    && *at > furthest
                {
                    furthest = *at;
                    in_vain = 0;
                }
                if !error.may_pass() || in_vain >= retries {
                    return Err(error);
                }
                let wait = Duration::from_millis(50 << in_vain.min(7));
                in_vain += 1;
                progress(Progress::Again { error: &error, wait });
                std::thread::sleep(wait);
            }
        }
    }
    unreachable!("an endless loop")
}
