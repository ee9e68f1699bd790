//! Other programs that move files: their servers, and what their clients are called with.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use grid_tests::Grid;

use super::{LARGE, Way, on, way};

/// A server that runs on a node.
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) port: u16,
    server: Child,
    /// Configuration and keys.
    folder: tempfile::TempDir,
}

/// Starts every peer that is installed, on this node, to serve this folder.
pub(super) fn start(grid: &Grid, node: u32, root: &Path) -> Vec<Peer> {
    let start = [iperf, ours, globus, vsftpd, nginx, rsync, sshd];
    let mut peers = Vec::new();
    for (index, start) in start.into_iter().enumerate() {
        let port = 6000 + u16::try_from(index).unwrap();
        match start(grid, node, root, port) {
            Ok(peer) => peers.push(peer),
            Err(why) => println!("  left out: {why}"),
        }
    }
    peers
}

impl Peer {
    pub(super) fn stop(mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }

    /// What fetches the large file to where it costs nothing.
    pub(super) fn large<'a>(
        &'a self,
        grid: &'a Grid,
        address: &'a str,
        file: &'a Path,
        streams: usize,
    ) -> Option<Way<'a>> {
        let port = self.port;
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let count = streams.to_string();
        let url = move |scheme: &str| format!("{scheme}://{address}:{port}/{name}");
        let command: Box<dyn Fn() -> Command> = match self.name {
            "iperf3" => Box::new(move || {
                let mut command = on(grid, 1, "iperf3");
                command.args(["-Z", "-c", address, "-p", &port.to_string(), "-P", &count]);
                command.args(["-n", &LARGE.to_string()]);
                command
            }),
            "globus" | "gridos-ftpd" => {
                let folder = match self.name {
                    // It serves the whole tree.
                    "globus" => file.to_string_lossy().into_owned(),
                    _ => format!("/{}", file.file_name().unwrap().to_string_lossy()),
                };
                Box::new(move || {
                    let mut command = on(grid, 1, "globus-url-copy");
                    command.args(["-fast", "-p", &count]);
                    command.arg(format!("ftp://{address}:{port}{folder}")).arg("file:///dev/null");
                    command
                })
            }
            "vsftpd" | "nginx" if streams == 1 => {
                let scheme = if self.name == "nginx" { "http" } else { "ftp" };
                Box::new(move || {
                    let mut command = on(grid, 1, "curl");
                    command.args(["-sSf", "-o", "/dev/null", &url(scheme)]);
                    command
                })
            }
            "rsync" if streams == 1 => {
                let warm = self.folder.path().join("warm");
                let _ = fs::copy(file, &warm);
                let name = file.file_name().unwrap().to_string_lossy().into_owned();
                Box::new(move || {
                    let mut command = on(grid, 1, "rsync");
                    command.args(["--inplace", "--whole-file", "--ignore-times"]);
                    command.arg(format!("rsync://{address}:{port}/all/{name}")).arg(&warm);
                    command
                })
            }
            "scp" if streams == 1 => Box::new(move || {
                let mut command = on(grid, 1, "scp");
                command.arg("-q").args(self.ssh_options()).args(["-P", &port.to_string()]);
                command.arg(format!("root@{address}:{}", file.display())).arg("/dev/null");
                command
            }),
            _ => return None,
        };
        Some(Way { name: self.version.clone(), command })
    }

    /// What fetches the file over a long line: with the defaults, and as one would tune it by hand.
    pub(super) fn long<'a>(&'a self, grid: &'a Grid, address: &'a str, file: &'a Path) -> Vec<Way<'a>> {
        if self.name != "globus" {
            return Vec::new();
        }
        let fetch = move |options: &'static [&'static str]| {
            move || {
                let mut command = on(grid, 1, "globus-url-copy");
                command.args(options);
                let url = format!("ftp://{address}:{}{}", self.port, file.display());
                command.arg(url).arg("file:///dev/null");
                command
            }
        };
        vec![
            way(format!("{}, defaults", self.version), fetch(&[])),
            way(format!("{}, tuned", self.version), fetch(&["-fast", "-p", "8", "-tcp-bs", "8388608"])),
        ]
    }

    /// What fetches a folder of small files over a long line.
    pub(super) fn small<'a>(&'a self, grid: &'a Grid, address: &'a str, tree: &'a Path) -> Vec<Way<'a>> {
        if self.name != "globus" {
            return Vec::new();
        }
        let fetch = move |options: &'static [&'static str]| {
            move || {
                let target = self.folder.path().join("small");
                let _ = fs::remove_dir_all(&target);
                let mut command = on(grid, 1, "globus-url-copy");
                command.args(["-cd", "-r"]).args(options);
                let url = format!("ftp://{address}:{}{}/", self.port, tree.display());
                command.arg(url).arg(format!("file://{}/", target.display()));
                command
            }
        };
        vec![
            way(format!("{}, defaults", self.version), fetch(&[])),
            way(format!("{}, tuned", self.version), fetch(&["-fast", "-pp", "-cc", "4"])),
        ]
    }

    fn ssh_options(&self) -> Vec<String> {
        let key = self.folder.path().join("key");
        ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
            .into_iter()
            .map(str::to_owned)
            .chain([format!("IdentityFile={}", key.display())])
            .flat_map(|option| ["-o".to_owned(), option])
            .collect()
    }
}

/// The version of a Debian package, if it is installed.
fn version(package: &str) -> Result<String, String> {
    let absent = || format!("{package} is not installed: setup/install bench installs it");
    let output =
        Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status} ${Version}", package]).output();
    let text = String::from_utf8_lossy(&output.map_err(|_| absent())?.stdout).into_owned();
    let version = text.strip_prefix("installed ").ok_or_else(absent)?;
    Ok(version.split(['-', '+']).next().unwrap_or(version).to_owned())
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("gridbench-").tempdir_in("/dev/shm").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn serve(
    grid: &Grid,
    node: u32,
    (name, version, port): (&'static str, String, u16),
    folder: tempfile::TempDir,
    mut command: Command,
) -> Result<Peer, String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = command.spawn().map_err(|error| format!("{name}: {error}"))?;
    let mut peer = Peer { name, version, port, server, folder };
    let address = grid.machine(node).addr();
    let start = Instant::now();
    let listens = || {
        let connect = || TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(1)).is_ok();
        grid.machine(node).with_network(connect).unwrap_or(false)
    };
    while !listens() {
        let ended = peer.server.try_wait().ok().flatten();
        if ended.is_some() || start.elapsed() > Duration::from_secs(10) {
            peer.stop();
            return Err(format!("{name} does not start: {ended:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(peer)
}

fn iperf(grid: &Grid, node: u32, _: &Path, port: u16) -> Result<Peer, String> {
    let version = format!("iperf3 {}", version("iperf3")?);
    let mut command = on(grid, node, "iperf3");
    command.args(["-s", "-p", &port.to_string()]);
    serve(grid, node, ("iperf3", version, port), folder(), command)
}

/// Our own server, with the client of others.
fn ours(grid: &Grid, node: u32, root: &Path, port: u16) -> Result<Peer, String> {
    let client = version("globus-gass-copy-progs")?;
    let mut command = on(grid, node, grid_tests::program("gridctl"));
    command.args(["ftp", "serve", "--anonymous", "--user", "nobody", "--port", &port.to_string(), "--root"]);
    command.arg(root);
    let version = format!("gridos ftp, globus-url-copy {client}");
    serve(grid, node, ("gridos-ftpd", version, port), folder(), command)
}

fn globus(grid: &Grid, node: u32, _: &Path, port: u16) -> Result<Peer, String> {
    version("globus-gass-copy-progs")?;
    let version = format!("globus {}", version("globus-gridftp-server-progs")?);
    let address = grid.machine(node).addr().to_string();
    let mut command = on(grid, node, "globus-gridftp-server");
    command.args(["-aa", "-anonymous-user", "nobody", "-anonymous-group", "nogroup"]);
    command.args(["-p", &port.to_string(), "-data-interface", &address]);
    serve(grid, node, ("globus", version, port), folder(), command)
}

fn vsftpd(grid: &Grid, node: u32, root: &Path, port: u16) -> Result<Peer, String> {
    let version = format!("vsftpd {}, curl {}", version("vsftpd")?, version("curl")?);
    let folder = folder();
    let (config, empty) = (folder.path().join("vsftpd.conf"), folder.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    let text = format!(
        "listen=YES\nlisten_port={port}\nbackground=NO\nanonymous_enable=YES\nanon_root={}\nsecure_chroot_dir={}\n\
         ftp_username=daemon\nallow_writeable_chroot=YES\nseccomp_sandbox=NO\nno_anon_password=YES\n\
         isolate=NO\nisolate_network=NO\nxferlog_enable=NO\n",
        root.display(),
        empty.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = on(grid, node, "vsftpd");
    command.arg(config);
    serve(grid, node, ("vsftpd", version, port), folder, command)
}

fn nginx(grid: &Grid, node: u32, root: &Path, port: u16) -> Result<Peer, String> {
    let version =
        format!("nginx {}, curl {}", version("nginx-light").or_else(|_| version("nginx"))?, version("curl")?);
    let folder = folder();
    let (config, own) = (folder.path().join("nginx.conf"), folder.path().display().to_string());
    let text = format!(
        "daemon off;\nuser nobody nogroup;\nworker_processes 1;\npid {own}/pid;\nerror_log {own}/error.log;\n\
         events {{}}\nhttp {{\naccess_log off;\nsendfile on;\ntcp_nopush on;\nserver {{ listen {port}; root {}; }}\n}}\n",
        root.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = on(grid, node, "nginx");
    command.arg("-c").arg(config);
    serve(grid, node, ("nginx", version, port), folder, command)
}

fn rsync(grid: &Grid, node: u32, root: &Path, port: u16) -> Result<Peer, String> {
    let version = format!("rsync {}", version("rsync")?);
    let folder = folder();
    let config = folder.path().join("rsyncd.conf");
    let text = format!(
        "use chroot = no\nuid = nobody\ngid = nogroup\n[all]\npath = {}\nread only = no\n",
        root.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = on(grid, node, "rsync");
    command.args(["--daemon", "--no-detach", "--port", &port.to_string(), "--config"]).arg(config);
    serve(grid, node, ("rsync", version, port), folder, command)
}

fn sshd(grid: &Grid, node: u32, _: &Path, port: u16) -> Result<Peer, String> {
    let version = format!("scp {}", version("openssh-server")?);
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    for name in ["host", "key"] {
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(name)).status();
        made.map_err(|error| format!("ssh-keygen: {error}"))?;
    }
    fs::copy(path("key.pub"), path("authorized")).unwrap();
    let text = format!(
        "Port {port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
         PidFile none\nSubsystem sftp internal-sftp\n",
        path("host").display(),
        path("authorized").display()
    );
    fs::write(path("sshd.conf"), text).unwrap();
    fs::create_dir_all("/run/sshd").map_err(|error| format!("/run/sshd: {error}"))?;
    let mut command = on(grid, node, "/usr/sbin/sshd");
    command.args(["-D", "-e", "-f"]).arg(path("sshd.conf"));
    serve(grid, node, ("scp", version, port), folder, command)
}
