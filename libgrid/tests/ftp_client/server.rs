//! Real servers on loopback: each with a folder and a port of its own, ended with its value.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use libgrid::ftp::client::{Client, FtpUrl, Limits, Login};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::authority::Authority;

/// Which server program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Globus,
    Proftpd,
    Vsftpd,
}

pub(crate) const ALL: [Kind; 3] = [Kind::Globus, Kind::Proftpd, Kind::Vsftpd];

/// How TLS is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsSetup {
    No,
    Yes,
    /// The client must show a certificate.
    Mutual,
}

/// A server that runs.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    child: Child,
    /// What the user sees as /.
    pub(crate) root: PathBuf,
    pub(crate) port: u16,
    start: Box<dyn Fn() -> Command>,
    _folder: tempfile::TempDir,
}

/// Debian's packages of two FTP servers exclude each other: setup/install unpacks them here.
fn unpacked() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("ftp")
}

fn program(name: &str) -> Option<PathBuf> {
    let places = [unpacked().join("usr/sbin"), "/usr/sbin".into(), "/usr/local/sbin".into()];
    places.into_iter().map(|place| place.join(name)).find(|path| path.exists())
}

fn command(program: &Path) -> Command {
    // A test that is killed must leave no server behind.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    let libraries = fs::read_dir(unpacked().join("usr/lib")).into_iter().flatten().flatten();
    let libraries =
        libraries.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    if let Some(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}

/// Why these servers cannot be started here.
pub(crate) fn obstacle(kinds: &[Kind]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("the servers need root: run the tests with sudo".to_owned());
    }
    kinds.iter().find_map(|kind| {
        let name = kind.program();
        program(name).is_none().then(|| format!("{name} is not here: run setup/install test"))
    })
}

/// A port that nobody uses, below those that the kernel gives out: a server that is killed finds it free again.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut ports = std::iter::repeat_with(|| {
        let next = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        u16::try_from(20_000 + next % 12_000).unwrap()
    });
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::Globus => "globus-gridftp-server",
            Self::Proftpd => "proftpd",
            Self::Vsftpd => "vsftpd",
        }
    }
}

impl Server {
    pub(crate) fn start(kind: Kind) -> Self {
        Self::start_with(kind, TlsSetup::No, None)
    }

    pub(crate) fn start_with(kind: Kind, tls: TlsSetup, authority: Option<&Authority>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, Permissions::from_mode(0o777)).unwrap();
        let port = free_port();
        let program = program(kind.program()).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let config = folder.path().join("config");
        if let Some(text) = config_of(kind, folder.path(), &root, port, tls, authority) {
            fs::write(&config, text).unwrap();
        }
        let start = move || {
            let mut command = command(&program);
            match kind {
                Kind::Globus => {
                    command.args(["-aa", "-anonymous-user", "nobody", "-anonymous-group", "nogroup"]);
                    command.args(["-control-interface", "127.0.0.1", "-data-interface", "127.0.0.1"]);
                    command.args(["-p", &port.to_string()]);
                }
                Kind::Proftpd => {
                    command.args(["-n", "-q", "-c"]).arg(&config);
                }
                Kind::Vsftpd => {
                    command.arg(&config);
                }
            }
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log.try_clone().unwrap());
            command.process_group(0);
            command
        };
        let child = start().spawn().unwrap();
        let mut server = Self { kind, child, root, port, start: Box::new(start), _folder: folder };
        server.wait();
        server
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.child.try_wait().unwrap();
            let log = || fs::read_to_string(self._folder.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "{:?} ended: {}", self.kind, log());
            assert!(Instant::now() < deadline, "{:?} does not answer: {}", self.kind, log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the server with all its sessions, as a crash of its machine would.
    pub(crate) fn kill(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = killpg(group, Signal::SIGKILL);
        self.child.wait().unwrap();
        kill_sessions(&self.root, self.port);
        // A session that is still dying may hold the port.
        let deadline = Instant::now() + Duration::from_secs(30);
        while killpg(group, None).is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts it again after [`Server::kill`].
    pub(crate) fn restart(&mut self) {
        self.child = (self.start)().spawn().unwrap();
        self.wait();
    }

    /// The path of a file as the server's users write it.
    pub(crate) fn path(&self, name: &str) -> Vec<u8> {
        // Globus shows the file system as it is.
        match self.kind {
            Kind::Globus => self.root.join(name).to_str().unwrap().as_bytes().to_vec(),
            // Vsftpd's users may not write where they are locked in.
            Kind::Vsftpd => format!("/root/{name}").into_bytes(),
            _ => format!("/{name}").into_bytes(),
        }
    }

    pub(crate) fn url(&self) -> FtpUrl {
        format!("ftp://127.0.0.1:{}/", self.port).parse().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.url(), &login()).unwrap()
    }
}

/// Gives this thread, and whatever it starts from now on, a network of its own where that is allowed. Each transfer leaves
/// a port that nobody may bind for a minute; after some ten thousand, a server finds none.
pub(crate) fn own_network() {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok() {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    }
}

/// Sessions that left the group of their server: each has a connection to or from its port.
fn kill_sessions(_root: &Path, port: u16) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("globus-gridftp-server") && line.contains(&format!("-p {port} ")) {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Patient enough for a busy machine, and no more.
pub(crate) fn login() -> Login {
    let limits = Limits {
        connect: Duration::from_secs(10),
        reply: Duration::from_secs(30),
        stall: Duration::from_secs(20),
        finish: Duration::from_secs(60),
        ..Limits::default()
    };
    Login { limits, ..Login::default() }
}

fn config_of(
    kind: Kind,
    folder: &Path,
    root: &Path,
    port: u16,
    tls: TlsSetup,
    authority: Option<&Authority>,
) -> Option<String> {
    let mut text = Vec::new();
    let (folder, root) = (folder.display(), root.display());
    match kind {
        Kind::Globus => return None,
        Kind::Proftpd => {
            let modules = unpacked().join("usr/lib/proftpd");
            if modules.exists() {
                writeln!(text, "ModulePath {}", modules.display()).unwrap();
            }
            // Some releases have these built in.
            let apart = ["delay", "ls", "xfer"];
            let apart = apart.into_iter().filter(|name| modules.join(format!("mod_{name}.so")).exists());
            for name in apart.chain(["digest", "tls"]) {
                writeln!(text, "LoadModule mod_{name}.c").unwrap();
            }
            writeln!(
                text,
                "ServerName test\nServerType standalone\nDefaultAddress 127.0.0.1\nPort {port}\nUseIPv6 off\n\
                 User nobody\nGroup nogroup\nMaxInstances 100\nPidFile {folder}/pid\nScoreboardFile {folder}/scoreboard\n\
                 DelayEngine off\nWtmpLog off\nUseReverseDNS off\nSystemLog {folder}/log\nTransferLog none\n\
                 AllowOverwrite on\nAllowStoreRestart on\nAllowRetrieveRestart on\nRequireValidShell off\nAuthPAM off\nUseFtpUsers off\n\
                 <Anonymous {root}>\n User nobody\n Group nogroup\n UserAlias anonymous nobody\n RequireValidShell off\n\
                 AllowOverwrite on\n AllowStoreRestart on\n</Anonymous>"
            )
            .unwrap();
            if let Some(authority) = authority.filter(|_| tls != TlsSetup::No) {
                let place = authority.path().display();
                writeln!(
                    text,
                    "TLSEngine on\nTLSRequired on\nTLSRSACertificateFile {place}/server.pem\n\
                     TLSRSACertificateKeyFile {place}/server.key\nTLSCACertificateFile {place}/ca.pem\nTLSLog {folder}/tls\n\
                     TLSVerifyClient {}",
                    if tls == TlsSetup::Mutual { "on" } else { "off" }
                )
                .unwrap();
            }
        }
        Kind::Vsftpd => {
            let empty = format!("{folder}/empty");
            fs::create_dir(&empty).unwrap();
            writeln!(
                text,
                "listen=YES\nlisten_address=127.0.0.1\nlisten_port={port}\nbackground=NO\nanonymous_enable=YES\n\
                 local_enable=NO\nwrite_enable=YES\nanon_upload_enable=YES\nanon_mkdir_write_enable=YES\n\
                 anon_other_write_enable=YES\nanon_umask=022\nanon_root={folder}\nno_anon_password=YES\n\
                 ftp_username=daemon\nsecure_chroot_dir={empty}\nseccomp_sandbox=NO\n\
                 isolate_network=NO\nisolate=NO\nxferlog_enable=NO\nmdtm_write=YES\npasv_address=127.0.0.1"
            )
            .unwrap();
            if let Some(authority) = authority.filter(|_| tls != TlsSetup::No) {
                let place = authority.path().display();
                writeln!(
                    text,
                    "ssl_enable=YES\nallow_anon_ssl=YES\nforce_anon_logins_ssl=YES\nforce_anon_data_ssl=NO\n\
                     rsa_cert_file={place}/server.pem\nrsa_private_key_file={place}/server.key\nca_certs_file={place}/ca.pem\n\
                     ssl_ciphers=HIGH\nrequire_cert={}\nvalidate_cert={}",
                    if tls == TlsSetup::Mutual { "YES" } else { "NO" },
                    if tls == TlsSetup::Mutual { "YES" } else { "NO" },
                )
                .unwrap();
            }
        }
    }
    Some(String::from_utf8(text).unwrap())
}
