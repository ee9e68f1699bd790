//! AUTH TLS: certificates log in, and data connections belong to the session.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Server, assert_same, bytes, installed, must, run};

/// A CA for one test, and certificates of it.
pub(crate) struct Ca {
    pub(crate) folder: PathBuf,
}

impl Ca {
    pub(crate) fn new(folder: &Path) -> Ca {
        std::fs::create_dir_all(folder).unwrap();
        let ca = Ca { folder: folder.to_owned() };
        ca.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "2",
            "-subj",
            "/O=Grid/CN=Test CA",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ]);
        ca.issue("host", "/O=Grid/CN=localhost", "DNS:localhost,IP:127.0.0.1");
        ca.issue("alice", "/O=Grid/CN=Alice Smith", "email:alice@grid.invalid");
        ca.issue("dora", "/O=Grid/CN=dora", "email:dora@grid.invalid");
        ca.issue("bob", "/CN=bob", "URI:spiffe://lab/user/bob");
        ca.issue("eve", "/CN=eve", "URI:spiffe://office/user/eve");
        std::fs::write(ca.at("gridmap"), "\"/O=Grid/CN=Alice Smith\" alice\n\"/O=Grid/CN=dora\" dora\n")
            .unwrap();
        ca
    }

    fn openssl(&self, args: &[&str]) {
        must(Command::new("openssl").args(args).current_dir(&self.folder));
    }

    fn issue(&self, name: &str, subject: &str, alternative: &str) {
        let (key, request, cert) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        std::fs::write(
            self.at("extensions"),
            format!(
                "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature,keyEncipherment\n\
                 extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName={alternative}\n"
            ),
        )
        .unwrap();
        self.openssl(&[
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &request, "-subj", subject,
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-out",
            &cert,
            "-extfile",
            "extensions",
        ]);
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A server with a certificate of it.
    pub(crate) fn server(folder: tempfile::TempDir, more: &[&str]) -> (Ca, Server) {
        let ca = Ca::new(&folder.path().join("ca"));
        let paths =
            ["host.pem", "host.key", "ca.pem", "gridmap"].map(|name| ca.at(name).display().to_string());
        let options = [
            "--cert",
            &paths[0],
            "--key",
            &paths[1],
            "--ca",
            &paths[2],
            "--gridmap",
            &paths[3],
            "--vo",
            "lab",
        ];
        let server = Server::in_folder(folder, &[&options, more].concat());
        (ca, server)
    }
}

fn curl(ca: &Ca, who: Option<&str>, server: &Server, more: &[&str], path: &str) -> Command {
    let mut command = Command::new("curl");
    command.args(["-sS", "--ssl-reqd", "--cacert"]).arg(ca.at("ca.pem"));
    if let Some(who) = who {
        command
            .arg("--cert")
            .arg(ca.at(&format!("{who}.pem")))
            .arg("--key")
            .arg(ca.at(&format!("{who}.key")));
    }
    command.args(more).arg(format!("ftp://localhost:{}/{path}", server.addr.port()));
    command
}

#[test]
fn a_certificate_of_the_vo_logs_in_and_nobody_else_does() {
    if !installed(&["curl", "openssl"]) {
        return;
    }
    let (ca, server) = Ca::server(tempfile::tempdir().unwrap(), &["--require-tls"]);
    let (source, got) = (server.beside("source"), server.beside("got"));
    std::fs::write(&source, bytes(1_000_003)).unwrap();
    let path = source.display().to_string();
    for (who, version) in [("bob", "1.2"), ("bob", "1.3"), ("alice", "1.3")] {
        must(&mut curl(&ca, Some(who), &server, &["--tls-max", version, "-T", &path], "put"));
        assert_same(&source, &server.at("put"));
        let out = got.display().to_string();
        must(&mut curl(&ca, Some(who), &server, &["--tls-max", version, "-o", &out], "put"));
        assert_same(&source, &got);
        std::fs::remove_file(server.at("put")).unwrap();
    }
    for who in [None, Some("eve")] {
        let output = run(&mut curl(&ca, who, &server, &[], ""));
        assert_eq!(output.status.code(), Some(67), "login is denied to {who:?}: {output:?}");
    }
}

#[test]
fn a_server_that_requires_tls_moves_no_data_without() {
    if !installed(&["python3", "openssl"]) {
        return;
    }
    let (ca, server) = Ca::server(tempfile::tempdir().unwrap(), &["--require-tls"]);
    let script = "
import ftplib, ssl, sys
folder, port = sys.argv[1], int(sys.argv[2])
c = ssl.create_default_context(cafile=folder + '/ca.pem'); c.load_cert_chain(folder + '/bob.pem', folder + '/bob.key')
plain = ftplib.FTP(); plain.connect('localhost', port)
for attempt in (plain.login, lambda: plain.login('bob', 'x')):
    try: attempt(); sys.exit('let in without TLS')
    except ftplib.error_perm: pass
ftp = ftplib.FTP_TLS(context=c); ftp.connect('localhost', port); ftp.login()
try: ftp.nlst(); sys.exit('listed without PROT P')
except ftplib.error_perm as error: assert str(error).startswith('521'), error
ftp.prot_p(); ftp.nlst()
try: ftp.prot_c(); sys.exit('PROT C is allowed')
except ftplib.error_perm: pass
";
    let port = server.addr.port().to_string();
    must(Command::new("python3").args(["-c", script, &ca.folder.display().to_string(), &port]));
}

#[test]
fn a_data_connection_without_the_certificate_of_the_session_gets_nothing() {
    if !installed(&["python3", "openssl"]) {
        return;
    }
    let (ca, server) = Ca::server(tempfile::tempdir().unwrap(), &[]);
    std::fs::write(server.at("x"), bytes(1000)).unwrap();
    let script = "
import ftplib, ssl, sys
folder, port, thief = sys.argv[1], int(sys.argv[2]), sys.argv[3] == 'thief'
def context(who):
    c = ssl.create_default_context(cafile=folder + '/ca.pem')
    if who: c.load_cert_chain(folder + f'/{who}.pem', folder + f'/{who}.key')
    return c
class Ftp(ftplib.FTP_TLS):
    def ntransfercmd(self, cmd, rest=None):
        connection, size = ftplib.FTP.ntransfercmd(self, cmd, rest)
        return data.wrap_socket(connection, server_hostname='localhost'), size
data = context('alice' if thief else 'bob')
ftp = Ftp(context=context('bob')); ftp.connect('localhost', port); ftp.login(); ftp.prot_p()
got = []
try:
    ftp.retrbinary('RETR x', got.append)
except (ftplib.Error, OSError, EOFError) as error:
    print('refused', error)
print(len(b''.join(got)))
";
    let folder = ca.folder.display().to_string();
    let say = |who: &str| {
        let port = server.addr.port().to_string();
        let output = must(Command::new("python3").args(["-c", script, &folder, &port, who]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(say("owner").trim(), "1000");
    let stolen = say("thief");
    assert!(stolen.starts_with("refused") && stolen.trim().ends_with('0'), "{stolen}");
}

#[test]
fn lftp_moves_data_under_tls() {
    if !installed(&["lftp", "openssl"]) {
        return;
    }
    let (ca, server) = Ca::server(tempfile::tempdir().unwrap(), &["--require-tls"]);
    std::fs::write(server.beside("source"), bytes(3_000_001)).unwrap();
    let at = |name: &str| ca.at(name).display().to_string();
    let script = format!(
        "set cmd:fail-exit yes; set net:max-retries 1; set ssl:ca-file {}; set ssl:cert-file {}; set ssl:key-file {}; \
         set ftp:ssl-force yes; set ftp:ssl-protect-data yes; open -u bob,x ftp://localhost:{}; lcd {}; \
         put source; get source -o got",
        at("ca.pem"),
        at("bob.pem"),
        at("bob.key"),
        server.addr.port(),
        server.folder.path().display()
    );
    must(Command::new("lftp").args(["-c", &script]));
    assert_same(&server.beside("source"), &server.at("source"));
    assert_same(&server.beside("source"), &server.beside("got"));
}
