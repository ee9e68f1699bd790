//! The FTP server, as `gridctl ftp serve` starts it.
//!
//! Exit statuses: 0 when it was told to end (TERM, INT), 1 when it cannot serve, 2 for a wrong command line.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use grid_transfer::ftp::{Anonymous, Bound, Config, Identity};
use libgrid::units::Span;
use nix::unistd::{Uid, User, initgroups, setgid, setuid};
use tokio::signal::unix::{SignalKind, signal};

/// Serve a folder to FTP and GridFTP clients: globus-url-copy, curl, lftp and others.
#[derive(Debug, Parser)]
#[command(name = "gridctl ftp serve", bin_name = "gridctl ftp serve", version, max_term_width = 100)]
struct Args {
    /// The folder; nothing outside of it can be reached
    #[arg(long, value_name = "FOLDER")]
    root: PathBuf,
    /// The port; 0 for any that is free
    #[arg(long, default_value_t = 2811)]
    port: u16,
    /// The address to listen on
    #[arg(long, value_name = "ADDR", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    listen: IpAddr,
    /// Let everybody in, to read or to write
    #[arg(long, value_name = "RIGHT", num_args = 0..=1, require_equals = true, default_missing_value = "read")]
    anonymous: Option<Right>,
    /// Serve with this user's rights; needed when started as root
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Ports for passive data connections, such as 50000-50100; any if absent
    #[arg(long, value_name = "FIRST-LAST", value_parser = ports)]
    passive: Option<(u16, u16)>,
    /// The server's certificate, PEM
    #[arg(long, value_name = "FILE", requires_all = ["key", "ca"])]
    cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The CA whose certificates log in, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    ca: Option<PathBuf>,
    /// Users for subjects of certificates that are not of the VO, as Globus writes them
    #[arg(long, value_name = "FILE", requires = "cert")]
    gridmap: Option<PathBuf>,
    /// Take only certificates of this VO
    #[arg(long, value_name = "NAME", requires = "cert")]
    vo: Option<String>,
    /// Take nobody without TLS or GSI
    #[arg(long, requires = "cert")]
    require_tls: bool,
    /// Let users with certificates move data between this and other servers
    #[arg(long)]
    allow_third_party: bool,
    /// How long a session may say nothing
    #[arg(long, value_name = "TIME", default_value = "5m")]
    idle: Span,
    /// How long a data connection may move nothing
    #[arg(long, value_name = "TIME", default_value = "1m")]
    stall: Span,
    /// How long a session may last
    #[arg(long, value_name = "TIME", default_value = "24h")]
    longest: Span,
    /// How long a client may take to log in
    #[arg(long, value_name = "TIME", default_value = "1m")]
    login: Span,
    /// Sessions at once
    #[arg(long, value_name = "N", default_value_t = 2000)]
    max_sessions: usize,
    /// Sessions at once from one address
    #[arg(long, value_name = "N", default_value_t = 500)]
    max_per_address: usize,
    /// Sessions at once of one user
    #[arg(long, value_name = "N", default_value_t = 500)]
    max_per_user: usize,
    /// Data connections at once, of all transfers
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_threads: usize,
    /// Data connections of one transfer
    #[arg(long, value_name = "N", default_value_t = 32)]
    max_streams: u32,
    /// Write each session and transfer to standard error
    #[arg(long, short)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Right {
    /// Get and list
    Read,
    /// Put, rename and remove, too
    Write,
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let read = || {
        let (first, last) = text.split_once('-')?;
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        (first >= 1024 && first <= last).then_some((first, last))
    };
    read().ok_or_else(|| "two ports from 1024 to 65535 are expected, such as 50000-50100".to_owned())
}

fn main() -> ExitCode {
    let args = Args::parse();
    let level = if args.verbose { tracing::Level::INFO } else { tracing::Level::WARN };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gridos-ftpd: {}", libgrid::sentence(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let user = who(args.user.as_deref())?;
    let identity = match (args.cert, args.key, args.ca) {
        (Some(cert), Some(key), Some(ca)) => {
            Some(Identity { cert, key, ca, gridmap: args.gridmap, vo: args.vo })
        }
        _ => None,
    };
    if identity.is_none() && args.anonymous.is_none() {
        bail!("nobody could log in: give --anonymous, or --cert, --key and --ca");
    }
    let config = Config {
        listen: SocketAddr::new(args.listen, args.port),
        anonymous: match args.anonymous {
            None => Anonymous::No,
            Some(Right::Read) => Anonymous::Read,
            Some(Right::Write) => Anonymous::Write,
        },
        identity,
        require_tls: args.require_tls,
        passive: args.passive,
        allow_third_party: args.allow_third_party,
        idle: args.idle.0,
        stall: args.stall.0,
        longest: args.longest.0,
        login: args.login.0,
        max_sessions: args.max_sessions,
        max_per_address: args.max_per_address,
        max_per_user: args.max_per_user,
        max_threads: args.max_threads.max(1),
        max_streams: args.max_streams.max(1),
        ..Config::new(args.root)
    };
    let bound = Bound::bind(config)?;
    if let Some(user) = user {
        become_user(&user)?;
    }
    // Tests and scripts that asked for any port read it here.
    println!("serving on {}", bound.address()?);
    bound.serve(ended())?;
    Ok(())
}

/// Who to become; `None` to stay who we are.
fn who(name: Option<&str>) -> anyhow::Result<Option<User>> {
    let ours = Uid::effective();
    let Some(name) = name else {
        if ours.is_root() {
            bail!("this server never serves as root: name a user with --user, such as --user nobody");
        }
        return Ok(None);
    };
    let user =
        User::from_name(name)?.with_context(|| format!("there is no user {name}: see getent passwd"))?;
    if user.uid.is_root() {
        bail!("this server never serves as root: name another user with --user");
    }
    if user.uid == ours {
        return Ok(None);
    }
    if !ours.is_root() {
        bail!("only root can serve as {name}: start it as root, or leave --user out");
    }
    Ok(Some(user))
}

fn become_user(user: &User) -> anyhow::Result<()> {
    let name = std::ffi::CString::new(user.name.as_str())?;
    initgroups(&name, user.gid).context("cannot take the user's groups")?;
    setgid(user.gid).context("cannot take the user's group")?;
    setuid(user.uid).context("cannot become the user")?;
    if setuid(Uid::from_raw(0)).is_ok() {
        bail!("root's rights could be taken back: this system cannot be served from");
    }
    Ok(())
}

/// Done when the process is told to end.
async fn ended() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => (),
        _ = int.recv() => (),
    }
}
