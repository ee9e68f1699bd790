//! Commands of the control connection.
//!
//! Verbs are read in any case. Paths are bytes: one space after the verb ends it, all that follows is the path, spaces
//! at its ends too (RFC 959, 5.3.1; names may begin with a space). A path never holds NUL, CR or LF.

use std::net::SocketAddr;
use std::time::SystemTime;

use crate::ftp::address::{AddressError, parse_eprt, parse_port, parse_spor};
use crate::ftp::marker::{RangeError, Ranges};
use crate::ftp::{line::MAX_TOKEN_LINE, time};

/// A path as the client wrote it: bytes without NUL, CR and LF; not yet resolved, not yet checked.
///
/// ```
/// use libgrid::ftp::command::{Command, Path};
/// let path: Path = b"a b".to_vec();
/// assert_eq!(Command::parse(b"CWD a b"), Ok(Command::Cwd(path)));
/// ```
pub type Path = Vec<u8>;

/// A command with its argument.
///
/// ```
/// use libgrid::ftp::command::Command;
/// assert_eq!(Command::parse(b"size /x"), Ok(Command::Size(b"/x".to_vec())));
/// assert_eq!(Command::parse(b"TYPE I"), Ok(Command::Type { letter: b'I' }));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Who logs in.
    User(Vec<u8>),
    /// With which password.
    Pass(Vec<u8>),
    /// Accounts are not used.
    Acct(Vec<u8>),
    /// Changes the directory.
    Cwd(Path),
    /// Changes to the directory above.
    Cdup,
    /// Mounts another file system: not used.
    Smnt,
    /// Ends the session.
    Quit,
    /// Forgets who logged in.
    Rein,
    /// The client listens here.
    Port(SocketAddr),
    /// The server shall listen.
    Pasv,
    /// The client listens here, in the extended form.
    Eprt(SocketAddr),
    /// The server shall listen; on which protocol, 1 for IPv4 and 2 for IPv6.
    Epsv(Epsv),
    /// Several servers shall listen.
    Spas,
    /// The clients listen here.
    Spor(Vec<SocketAddr>),
    /// The representation of data: `A`, `I`, `E` or `L`.
    Type {
        /// In upper case.
        letter: u8,
    },
    /// The structure of files: `F`, `R` or `P`.
    Stru(u8),
    /// How data are sent: `S`, `B`, `C`, or `E` of GridFTP.
    Mode(u8),
    /// Sends a file to the client.
    Retr(Path),
    /// Receives a file.
    Stor(Path),
    /// Receives a file under a name that the server finds.
    Stou(Option<Path>),
    /// Receives data to the end of a file.
    Appe(Path),
    /// How many bytes will come.
    Allo(u64),
    /// Where the next transfer begins.
    Rest(Rest),
    /// Which file to rename.
    Rnfr(Path),
    /// How to call it.
    Rnto(Path),
    /// Aborts the transfer.
    Abor,
    /// Removes a file.
    Dele(Path),
    /// Removes a directory.
    Rmd(Path),
    /// Makes a directory.
    Mkd(Path),
    /// Tells the directory.
    Pwd,
    /// Lists a directory, for people.
    List(Option<Path>),
    /// Lists names.
    Nlst(Option<Path>),
    /// Lists facts.
    Mlsd(Option<Path>),
    /// Tells facts of one file.
    Mlst(Option<Path>),
    /// What only this server knows.
    Site(Site),
    /// The server's system.
    Syst,
    /// How the session or a file is.
    Stat(Option<Path>),
    /// Help, on a command.
    Help(Option<Vec<u8>>),
    /// Nothing.
    Noop,
    /// The extensions.
    Feat,
    /// How an extension behaves.
    Opts(Opts),
    /// The size of a file.
    Size(Path),
    /// When a file was changed; with a time first, some clients want it set.
    Mdtm(Path),
    /// Sets when a file was changed.
    Mfmt(SystemTime, Path),
    /// Begins to secure the session: `TLS`, `TLS-C`, `SSL`, `GSSAPI`, in upper case.
    Auth(Vec<u8>),
    /// A token of the security mechanism, base64.
    Adat(Vec<u8>),
    /// The largest protected block in bytes.
    Pbsz(u32),
    /// How data are protected: `C`, `S`, `E` or `P`.
    Prot(u8),
    /// No longer protects commands.
    Ccc,
    /// A command, protected, base64: integrity.
    Mic(Vec<u8>),
    /// A command, protected, base64: privacy.
    Conf(Vec<u8>),
    /// A command, protected, base64: both.
    Enc(Vec<u8>),
    /// Who must be at the other end of data connections: `N`, `A`, or `S` and a subject.
    Dcau {
        /// In upper case.
        mode: u8,
        /// With `S`.
        subject: Option<Vec<u8>>,
    },
    /// The size of the socket's buffer in bytes.
    Sbuf(u64),
    /// Find the size of the socket's buffer.
    Abuf(Vec<u8>),
    /// Sends a part of a file.
    Eret {
        /// Where it begins.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Of which file.
        path: Path,
    },
    /// Receives into a part of a file.
    Esto {
        /// Added to the offset of all that comes.
        offset: u64,
        /// Of which file.
        path: Path,
    },
    /// A checksum.
    Cksm {
        /// Of which sort, in upper case.
        algorithm: String,
        /// Where it begins.
        offset: u64,
        /// How many bytes; `None` for all.
        length: Option<u64>,
        /// Of which file.
        path: Path,
    },
    /// The language of replies.
    Lang(Vec<u8>),
    /// What the client calls itself.
    Clnt(Vec<u8>),
    /// The name of the host that the client believes to talk to.
    Host(Vec<u8>),
    /// Who is logged in.
    Whoami,
}

/// What EPSV asks for.
///
/// ```
/// use libgrid::ftp::command::{Command, Epsv};
/// assert_eq!(Command::parse(b"EPSV ALL"), Ok(Command::Epsv(Epsv::All)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epsv {
    /// As the control connection.
    Same,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Another protocol, which nobody knows.
    Other,
    /// From now on, nothing but EPSV.
    All,
}

/// Where a transfer begins: the argument of REST.
///
/// ```
/// use libgrid::ftp::command::{Command, Rest};
/// assert_eq!(Command::parse(b"REST 100"), Ok(Command::Rest(Rest::At(100))));
/// assert!(matches!(Command::parse(b"REST 0-5,9-12"), Ok(Command::Rest(Rest::Have(_)))));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// In stream mode: at this byte.
    At(u64),
    /// In MODE E: all but these.
    Have(Ranges),
}

/// SITE commands.
///
/// ```
/// use libgrid::ftp::command::{Command, Site};
/// let command = Command::parse(b"SITE CHMOD 644 run7.h5").unwrap();
/// assert_eq!(command, Command::Site(Site::Chmod { mode: 0o644, path: b"run7.h5".to_vec() }));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Site {
    /// Help.
    Help,
    /// Sets permission bits.
    Chmod {
        /// The lowest 12 bits.
        mode: u32,
        /// Of what.
        path: Path,
    },
    /// Sets when a file was changed.
    Utime {
        /// To when.
        time: SystemTime,
        /// Of what.
        path: Path,
    },
    /// What the client tells of itself.
    ClientInfo(Vec<u8>),
    /// The size of the socket's buffer in bytes, for sending, receiving or both.
    BufSize(u64),
    /// Another.
    Other(Vec<u8>),
}

/// The argument of OPTS.
///
/// ```
/// use libgrid::ftp::command::{Command, Opts};
/// let command = Command::parse(b"OPTS RETR Parallelism=4,4,4;").unwrap();
/// assert_eq!(command, Command::Opts(Opts::Retr { parallelism: Some(4), markers: None }));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opts {
    /// For RETR.
    Retr {
        /// How many data connections to open, the first of the three numbers.
        parallelism: Option<u32>,
        /// Seconds between markers.
        markers: Option<u32>,
    },
    /// For STOR: seconds between markers.
    Stor {
        /// Seconds between markers.
        markers: Option<u32>,
    },
    /// The facts that MLST and MLSD shall tell.
    Mlst(Vec<u8>),
    /// Whether names are UTF-8.
    Utf8(bool),
    /// Another.
    Other(Vec<u8>),
}

/// The line is not a command that can be carried out.
///
/// ```
/// use libgrid::ftp::command::{Command, CommandError};
/// assert_eq!(Command::parse(b"JUMP high"), Err(CommandError::Unknown { verb: "JUMP".into() }));
/// assert_eq!(Command::parse(b"RETR").unwrap_err().code(), 501);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such command.
    #[error("{verb:?} is not a command of this server: HELP lists those that are")]
    Unknown {
        /// Its beginning.
        verb: String,
    },
    /// The argument is missing.
    #[error("{verb} needs {what}")]
    Missing {
        /// The command.
        verb: String,
        /// What it needs.
        what: &'static str,
    },
    /// The argument makes no sense.
    #[error("{verb} cannot use {text:?}: {what} is expected")]
    Argument {
        /// The command.
        verb: String,
        /// Its argument, cut to 80 characters.
        text: String,
        /// What it should be.
        what: &'static str,
    },
    /// The address makes no sense.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The ranges make no sense.
    #[error(transparent)]
    Ranges(#[from] RangeError),
    /// The line holds a NUL.
    #[error("the line holds a NUL byte, which no name can hold")]
    Nul,
}

impl CommandError {
    /// The code of the reply: 500 for an unknown command, 501 for a wrong argument.
    ///
    /// ```
    /// use libgrid::ftp::command::Command;
    /// assert_eq!(Command::parse(b"").unwrap_err().code(), 500);
    /// ```
    pub fn code(&self) -> u16 {
        if matches!(self, CommandError::Unknown { .. }) { 500 } else { 501 }
    }
}

/// The argument of one command, as it is being read.
struct Argument<'a> {
    verb: &'a str,
    text: Option<&'a [u8]>,
}

type Parsed<T> = Result<T, CommandError>;

impl<'a> Argument<'a> {
    fn needed(&self, what: &'static str) -> Parsed<&'a [u8]> {
        self.text
            .filter(|text| !text.is_empty())
            .ok_or_else(|| CommandError::Missing { verb: self.verb.to_owned(), what })
    }

    fn path(&self) -> Parsed<Path> {
        Ok(self.needed("a path")?.to_vec())
    }

    fn optional(&self) -> Option<Path> {
        self.text.filter(|text| !text.is_empty()).map(<[u8]>::to_vec)
    }

    fn wrong(&self, what: &'static str) -> CommandError {
        let text = self.text.unwrap_or_default();
        let text = String::from_utf8_lossy(text).chars().take(80).collect();
        CommandError::Argument { verb: self.verb.to_owned(), text, what }
    }

    /// One letter, in upper case; what may follow it is not looked at.
    fn letter(&self, what: &'static str) -> Parsed<u8> {
        let word = self.needed(what)?.trim_ascii();
        match word {
            [letter] => Ok(letter.to_ascii_uppercase()),
            [letter, b' ', ..] => Ok(letter.to_ascii_uppercase()),
            _ => Err(self.wrong(what)),
        }
    }

    fn number(&self, what: &'static str) -> Parsed<u64> {
        number(self.needed(what)?.trim_ascii()).ok_or_else(|| self.wrong(what))
    }

    /// The next word, and what follows the space behind it.
    fn split(&self, what: &'static str) -> Parsed<(&'a [u8], Argument<'a>)> {
        let text = self.needed(what)?;
        let space = text.iter().position(|&byte| byte == b' ').ok_or_else(|| self.wrong(what))?;
        Ok((&text[..space], Argument { verb: self.verb, text: Some(&text[space + 1..]) }))
    }
}

fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(text).ok()?.parse().ok()?;
    // No file is longer.
    (number <= i64::MAX.cast_unsigned()).then_some(number)
}

impl Command {
    /// Reads a line without its end.
    ///
    /// # Errors
    /// [`CommandError`], whose text and [code](CommandError::code) make the reply.
    ///
    /// ```
    /// use libgrid::ftp::command::Command;
    /// let command = Command::parse(b"ERET P 1000 5000 /x.h5").unwrap();
    /// assert_eq!(command, Command::Eret { offset: 1000, length: 5000, path: b"/x.h5".to_vec() });
    /// ```
    pub fn parse(line: &[u8]) -> Result<Command, CommandError> {
        let space = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
        let verb: String =
            line[..space.min(12)].iter().map(|byte| char::from(byte.to_ascii_uppercase())).collect();
        if line.len() > MAX_TOKEN_LINE {
            return Err(CommandError::Unknown { verb });
        }
        if line.iter().any(|&byte| matches!(byte, 0 | b'\n' | b'\r')) {
            return Err(CommandError::Nul);
        }
        let of = Argument { verb: &verb, text: line.get(space + 1..) };
        Ok(match verb.as_str() {
            "USER" => Command::User(of.needed("a name")?.to_vec()),
            "PASS" => Command::Pass(of.text.unwrap_or_default().to_vec()),
            "ACCT" => Command::Acct(of.needed("an account")?.to_vec()),
            "CWD" | "XCWD" => Command::Cwd(of.path()?),
            "CDUP" | "XCUP" => Command::Cdup,
            "SMNT" => Command::Smnt,
            "QUIT" => Command::Quit,
            "REIN" => Command::Rein,
            "PORT" => Command::Port(parse_port(of.needed("an address")?.trim_ascii())?),
            "PASV" => Command::Pasv,
            "EPRT" => Command::Eprt(parse_eprt(of.needed("an address")?.trim_ascii())?),
            "EPSV" => Command::Epsv(match of.text.map(<[u8]>::trim_ascii).unwrap_or_default() {
                b"" => Epsv::Same,
                b"1" => Epsv::V4,
                b"2" => Epsv::V6,
                text if text.eq_ignore_ascii_case(b"ALL") => Epsv::All,
                text if number(text).is_some() => Epsv::Other,
                _ => return Err(of.wrong("1, 2, ALL or nothing")),
            }),
            "SPAS" => Command::Spas,
            "SPOR" => Command::Spor(parse_spor(of.needed("addresses")?)?),
            "TYPE" => Command::Type { letter: of.letter("A, I or L 8")? },
            "STRU" => Command::Stru(of.letter("F")?),
            "MODE" => Command::Mode(of.letter("S or E")?),
            "RETR" => Command::Retr(of.path()?),
            "STOR" => Command::Stor(of.path()?),
            "STOU" => Command::Stou(of.optional()),
            "APPE" => Command::Appe(of.path()?),
            "ALLO" => {
                // "ALLO 100 R 10": the size of records does not matter.
                let text = of.needed("a number of bytes")?.trim_ascii();
                let first = text.split(|&byte| byte == b' ').next().unwrap_or_default();
                Command::Allo(number(first).ok_or_else(|| of.wrong("a number of bytes"))?)
            }
            "REST" => {
                let text = of.needed("a number of bytes or ranges")?.trim_ascii();
                Command::Rest(match number(text) {
                    Some(at) => Rest::At(at),
                    None => Rest::Have(Ranges::parse(text)?),
                })
            }
            "RNFR" => Command::Rnfr(of.path()?),
            "RNTO" => Command::Rnto(of.path()?),
            "ABOR" => Command::Abor,
            "DELE" => Command::Dele(of.path()?),
            "RMD" | "XRMD" => Command::Rmd(of.path()?),
            "MKD" | "XMKD" => Command::Mkd(of.path()?),
            "PWD" | "XPWD" => Command::Pwd,
            "LIST" => Command::List(listed(of.optional())),
            "NLST" => Command::Nlst(listed(of.optional())),
            "MLSD" => Command::Mlsd(of.optional()),
            "MLST" => Command::Mlst(of.optional()),
            "SITE" => Command::Site(site(&of)?),
            "SYST" => Command::Syst,
            "STAT" => Command::Stat(listed(of.optional())),
            "HELP" => Command::Help(of.optional()),
            "NOOP" => Command::Noop,
            "FEAT" => Command::Feat,
            "OPTS" => Command::Opts(opts(&of)?),
            "SIZE" => Command::Size(of.path()?),
            "MDTM" => Command::Mdtm(of.path()?),
            "MFMT" => {
                let (when, path) = of.split("YYYYMMDDHHMMSS and a path")?;
                let when = time::parse(when).ok_or_else(|| of.wrong("YYYYMMDDHHMMSS and a path"))?;
                Command::Mfmt(when, path.path()?)
            }
            "AUTH" => Command::Auth(of.needed("TLS or GSSAPI")?.trim_ascii().to_ascii_uppercase()),
            "ADAT" => Command::Adat(of.needed("a token")?.to_vec()),
            "PBSZ" => Command::Pbsz(
                of.number("a number of bytes")?.try_into().map_err(|_| of.wrong("a number below 2^32"))?,
            ),
            "PROT" => Command::Prot(of.letter("C or P")?),
            "CCC" => Command::Ccc,
            "MIC" => Command::Mic(of.needed("a token")?.to_vec()),
            "CONF" => Command::Conf(of.needed("a token")?.to_vec()),
            "ENC" => Command::Enc(of.needed("a token")?.to_vec()),
            "DCAU" => {
                let text = of.needed("N, A or S")?;
                let subject = text.get(2..).filter(|subject| !subject.is_empty()).map(<[u8]>::to_vec);
                Command::Dcau { mode: of.letter("N, A or S")?, subject }
            }
            "SBUF" => Command::Sbuf(of.number("a number of bytes")?),
            "ABUF" => Command::Abuf(of.needed("a method")?.to_vec()),
            "ERET" => eret(&of)?,
            "ESTO" => esto(&of)?,
            "CKSM" => cksm(&of)?,
            "LANG" => Command::Lang(of.text.unwrap_or_default().to_vec()),
            "CLNT" => Command::Clnt(of.text.unwrap_or_default().to_vec()),
            "HOST" => Command::Host(of.needed("a name")?.to_vec()),
            "WHOAMI" => Command::Whoami,
            _ => {
                let verb = verb.chars().map(|letter| if letter.is_ascii_graphic() { letter } else { '?' });
                return Err(CommandError::Unknown { verb: verb.collect() });
            }
        })
    }
}

/// Options of `ls`, which many clients send (`LIST -la x`), are left out.
fn listed(path: Option<Path>) -> Option<Path> {
    let mut rest = path?;
    while rest.first() == Some(&b'-') && rest.get(1).is_some_and(u8::is_ascii_alphabetic) {
        match rest.iter().position(|&byte| byte == b' ') {
            Some(space) => drop(rest.drain(..=space)),
            None => return None,
        }
    }
    Some(rest).filter(|rest| !rest.is_empty())
}

fn site(of: &Argument<'_>) -> Parsed<Site> {
    let text = of.needed("a command")?;
    let space = text.iter().position(|&byte| byte == b' ').unwrap_or(text.len());
    let verb: String =
        text[..space.min(16)].iter().map(|byte| char::from(byte.to_ascii_uppercase())).collect();
    let name = format!("SITE {verb}");
    let of = Argument { verb: &name, text: text.get(space + 1..) };
    Ok(match verb.as_str() {
        "HELP" => Site::Help,
        "CHMOD" => {
            let what = "permissions such as 644 and a path";
            let (mode, path) = of.split(what)?;
            let mode = std::str::from_utf8(mode).ok().filter(|mode| mode.bytes().all(|b| b.is_ascii_digit()));
            let mode = mode.and_then(|mode| u32::from_str_radix(mode, 8).ok()).filter(|mode| *mode <= 0o7777);
            Site::Chmod { mode: mode.ok_or_else(|| of.wrong(what))?, path: path.path()? }
        }
        "UTIME" => utime(&of)?,
        "CLIENTINFO" => Site::ClientInfo(of.text.unwrap_or_default().to_vec()),
        "BUFSIZE" | "RETRBUFSIZE" | "STORBUFSIZE" | "RBUFSZ" | "SBUFSZ" | "RBUFSIZ" | "SBUFSIZ"
        | "RETRBUFSZ" | "STORBUFSZ" => Site::BufSize(of.number("a number of bytes")?),
        _ => Site::Other(text.to_vec()),
    })
}

/// `UTIME YYYYMMDDHHMM[SS] path`, or `UTIME path atime mtime ctime UTC` as others write it.
fn utime(of: &Argument<'_>) -> Parsed<Site> {
    let what = "YYYYMMDDHHMMSS and a path";
    let (when, path) = of.split(what)?;
    let full = |text: &[u8]| match text.len() {
        12 => time::parse(&[text, b"00"].concat()),
        _ => time::parse(text),
    };
    if let Some(time) = full(when) {
        return Ok(Site::Utime { time, path: path.path()? });
    }
    let mut words = of.needed(what)?.rsplitn(5, |&byte| byte == b' ');
    let (zone, _changed, modified) = (words.next(), words.next(), words.next());
    let (_read, path) = (words.next(), words.next());
    let time = modified.filter(|_| zone == Some(b"UTC")).and_then(full).ok_or_else(|| of.wrong(what))?;
    let path = path.filter(|path| !path.is_empty()).ok_or_else(|| of.wrong(what))?;
    Ok(Site::Utime { time, path: path.to_vec() })
}

fn opts(of: &Argument<'_>) -> Parsed<Opts> {
    let text = of.needed("the name of an extension")?;
    let space = text.iter().position(|&byte| byte == b' ').unwrap_or(text.len());
    let rest = text.get(space + 1..).unwrap_or_default();
    // "Parallelism=4,4,4;Markers=5;": of a list of numbers, the first counts.
    let option = |name: &str| {
        rest.split(|&byte| byte == b';').find_map(|pair| {
            let equals = pair.iter().position(|&byte| byte == b'=')?;
            let value = pair[equals + 1..].split(|&byte| byte == b',').next()?;
            pair[..equals].trim_ascii().eq_ignore_ascii_case(name.as_bytes()).then_some(value.trim_ascii())
        })
    };
    let value = |name: &str| match option(name) {
        None => Ok(None),
        Some(value) => match number(value).and_then(|value| u32::try_from(value).ok()) {
            Some(value) => Ok(Some(value)),
            None => Err(of.wrong("Parallelism=N,N,N; or Markers=SECONDS;")),
        },
    };
    Ok(match text[..space].to_ascii_uppercase().as_slice() {
        b"RETR" => Opts::Retr { parallelism: value("Parallelism")?, markers: value("Markers")? },
        b"STOR" => Opts::Stor { markers: value("Markers")? },
        b"MLST" => Opts::Mlst(rest.to_vec()),
        b"UTF8" | b"UTF-8" => match rest.trim_ascii().to_ascii_uppercase().as_slice() {
            b"" | b"ON" => Opts::Utf8(true),
            b"OFF" => Opts::Utf8(false),
            _ => return Err(of.wrong("ON or OFF")),
        },
        _ => Opts::Other(text.to_vec()),
    })
}

fn eret(of: &Argument<'_>) -> Parsed<Command> {
    let what = "P OFFSET LENGTH PATH";
    let (module, rest) = of.split(what)?;
    let (offset, rest) = rest.split(what)?;
    let (length, rest) = rest.split(what)?;
    match (number(offset), number(length)) {
        (Some(offset), Some(length)) if module.eq_ignore_ascii_case(b"P") => {
            Ok(Command::Eret { offset, length, path: rest.path()? })
        }
        _ => Err(of.wrong(what)),
    }
}

fn esto(of: &Argument<'_>) -> Parsed<Command> {
    let what = "A OFFSET PATH";
    let (module, rest) = of.split(what)?;
    let (offset, rest) = rest.split(what)?;
    match number(offset) {
        Some(offset) if module.eq_ignore_ascii_case(b"A") => Ok(Command::Esto { offset, path: rest.path()? }),
        _ => Err(of.wrong(what)),
    }
}

fn cksm(of: &Argument<'_>) -> Parsed<Command> {
    let what = "ALGORITHM OFFSET LENGTH PATH, with -1 for all";
    let (algorithm, rest) = of.split(what)?;
    let (offset, rest) = rest.split(what)?;
    let (length, rest) = rest.split(what)?;
    let algorithm = std::str::from_utf8(algorithm).map_err(|_| of.wrong(what))?.to_ascii_uppercase();
    let offset = number(offset).ok_or_else(|| of.wrong(what))?;
    let length = match length {
        b"-1" => None,
        length => Some(number(length).ok_or_else(|| of.wrong(what))?),
    };
    Ok(Command::Cksm { algorithm, offset, length, path: rest.path()? })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_line_is_a_command_or_refused_with_a_reason(line in vec(any::<u8>(), 0..100)) {
            if let Err(error) = Command::parse(&line) {
                prop_assert!(!error.to_string().is_empty());
            }
        }

        #[test]
        fn a_path_is_kept_byte_for_byte(path in vec(any::<u8>().prop_filter("ends the line", |b| !matches!(b, 0 | 10 | 13)), 1..80)) {
            let line = [b"RETR ", path.as_slice()].concat();
            prop_assert_eq!(Command::parse(&line), Ok(Command::Retr(path.clone())));
            let line = [b"CKSM md5 0 -1 ", path.as_slice()].concat();
            let expected = Command::Cksm { algorithm: "MD5".into(), offset: 0, length: None, path };
            prop_assert_eq!(Command::parse(&line), Ok(expected));
        }
    }

    #[test]
    fn what_real_clients_send_is_read() {
        let parse = |line: &str| Command::parse(line.as_bytes());
        assert_eq!(parse("LIST -la"), Ok(Command::List(None)));
        assert_eq!(parse("LIST -a dir"), Ok(Command::List(Some(b"dir".to_vec()))));
        assert_eq!(parse("SITE RETRBUFSIZE 1048576"), Ok(Command::Site(Site::BufSize(1_048_576))));
        assert_eq!(parse("DCAU N"), Ok(Command::Dcau { mode: b'N', subject: None }));
        assert_eq!(
            parse("DCAU S /O=x/CN=y"),
            Ok(Command::Dcau { mode: b'S', subject: Some(b"/O=x/CN=y".to_vec()) })
        );
        assert_eq!(parse("TYPE A N"), Ok(Command::Type { letter: b'A' }));
        assert_eq!(parse("ALLO 5 R 1"), Ok(Command::Allo(5)));
        assert_eq!(parse("opts utf8 on"), Ok(Command::Opts(Opts::Utf8(true))));
        let utime = parse("SITE UTIME a b 20240101000000 20240229120000 20240101000000 UTC");
        let time = time::parse(b"20240229120000").unwrap();
        assert_eq!(utime, Ok(Command::Site(Site::Utime { time, path: b"a b".to_vec() })));
    }

    #[test]
    fn numbers_that_no_file_has_are_refused() {
        for line in [
            "REST 9223372036854775808",
            "REST -1",
            "ALLO x",
            "ERET P -1 5 x",
            "SITE CHMOD 10000 x",
            "MODE EE",
        ] {
            assert_eq!(Command::parse(line.as_bytes()).map_err(|error| error.code()), Err(501), "{line}");
        }
    }
}
