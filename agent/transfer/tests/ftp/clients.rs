//! curl, lftp, wget, ncftp and Python's ftplib.

use std::process::Command;

use crate::support::{Server, assert_same, assert_same_tree, bytes, installed, must, tree};

/// Sizes at which things go wrong: nothing, one byte, beside a power of two, more than all buffers.
const SIZES: [usize; 5] = [0, 1, 65_537, 1_048_576, 5_000_001];

#[test]
fn curl_gets_puts_and_resumes() {
    if !installed(&["curl"]) {
        return;
    }
    let server = Server::open();
    for size in SIZES {
        let (source, copy) = (server.beside("source"), server.beside("copy"));
        std::fs::write(&source, bytes(size)).unwrap();
        must(Command::new("curl").args(["-sS", "-T"]).arg(&source).arg(server.url("put")));
        assert_same(&source, &server.at("put"));
        for extra in [&["--disable-epsv"][..], &["-P", "127.0.0.1"], &["--disable-eprt", "-P", "-"], &[]] {
            must(Command::new("curl").args(["-sS", "-o"]).arg(&copy).args(extra).arg(server.url("put")));
            assert_same(&source, &copy);
        }
    }
    // Both ways, resumed in the middle.
    let (source, copy) = (server.beside("source"), server.beside("copy"));
    std::fs::write(&copy, &bytes(5_000_001)[..1_234_567]).unwrap();
    must(Command::new("curl").args(["-sS", "-C", "-", "-o"]).arg(&copy).arg(server.url("put")));
    assert_same(&source, &copy);
    std::fs::File::options().write(true).open(server.at("put")).unwrap().set_len(77_777).unwrap();
    must(Command::new("curl").args(["-sS", "-C", "-", "-T"]).arg(&source).arg(server.url("put")));
    assert_same(&source, &server.at("put"));
    let listed = must(Command::new("curl").args(["-sS", "-l"]).arg(server.url("")));
    assert_eq!(listed.stdout.trim_ascii(), b"put");
    must(Command::new("curl").args(["-sS", "--ftp-create-dirs", "-T"]).arg(&source).arg(server.url("a/b/c")));
    assert_same(&source, &server.at("a/b/c"));
    must(Command::new("curl").args(["-sS", "-r", "100-199", "-o"]).arg(&copy).arg(server.url("put")));
    assert_eq!(std::fs::read(&copy).unwrap(), bytes(5_000_001)[100..200]);
}

#[test]
fn lftp_mirrors_both_ways_and_gets_in_parts() {
    if !installed(&["lftp"]) {
        return;
    }
    let server = Server::open();
    let source = server.beside("source");
    tree(&source, 300);
    std::fs::write(source.join("big"), bytes(5_000_001)).unwrap();
    let lftp = |script: &str| {
        let open = format!(
            "set cmd:fail-exit yes; open ftp://{}; lcd {}; ",
            server.addr,
            server.folder.path().display()
        );
        must(Command::new("lftp").args(["-c", &(open + script)]))
    };
    lftp("mirror -R source up; mirror -P 4 up down; pget -n 4 up/big -o parts");
    assert_same_tree(&source, &server.at("up"));
    assert_same_tree(&source, &server.beside("down"));
    assert_same(&source.join("big"), &server.beside("parts"));
    lftp(
        "mv up/big up/large; chmod 600 up/large; rm -r up/d0; mkdir x; rmdir x; reput source/big -o up/large",
    );
    assert!(!server.at("up/d0").exists() && server.at("up/large").exists());
}

#[test]
fn wget_gets_a_tree() {
    if !installed(&["wget"]) {
        return;
    }
    let server = Server::open();
    tree(&server.at("tree"), 50);
    must(
        Command::new("wget")
            .args(["-q", "-r", "-nH", "-P"])
            .arg(server.beside("got"))
            .arg(server.url("tree/")),
    );
    assert_same_tree(&server.at("tree"), &server.beside("got/tree"));
}

#[test]
fn ncftp_gets_and_puts() {
    if !installed(&["ncftpget", "ncftpput"]) {
        return;
    }
    let server = Server::open();
    let port = server.addr.port().to_string();
    for size in SIZES {
        let source = server.beside("source");
        std::fs::write(&source, bytes(size)).unwrap();
        must(Command::new("ncftpput").args(["-V", "-P", &port, "127.0.0.1", "/"]).arg(&source));
        assert_same(&source, &server.at("source"));
        let got = server.beside("got");
        std::fs::create_dir_all(&got).unwrap();
        must(Command::new("ncftpget").args(["-V", "-P", &port, "127.0.0.1"]).arg(&got).arg("/source"));
        assert_same(&source, &got.join("source"));
        std::fs::remove_dir_all(&got).unwrap();
    }
}

#[test]
fn pythons_ftplib_does_all_it_can() {
    if !installed(&["python3"]) {
        return;
    }
    let server = Server::open();
    let script = "
import ftplib, io, sys
host, port = sys.argv[1].split(':')
ftp = ftplib.FTP(); ftp.connect(host, int(port)); ftp.login()
data = bytes(range(256)) * 5000
ftp.storbinary('STOR x', io.BytesIO(data))
assert ftp.size('x') == len(data)
got = io.BytesIO(); ftp.retrbinary('RETR x', got.write, rest=1000); assert got.getvalue() == data[1000:]
ftp.storlines('STOR text', io.BytesIO(b'one\\ntwo\\n'))
lines = []; ftp.retrlines('RETR text', lines.append); assert lines == ['one', 'two'], lines
ftp.voidcmd('TYPE I'); assert ftp.size('text') == 8, ftp.size('text')
ftp.mkd('d \"q\"'); ftp.cwd('d \"q\"'); assert ftp.pwd() == '/d \"q\"', ftp.pwd(); ftp.cwd('..')
ftp.rename('x', 'd \"q\"/y')
assert dict(ftp.mlsd('d \"q\"'))['y']['size'] == str(len(data))
assert ftp.nlst('d \"q\"') == ['d \"q\"/y'], ftp.nlst('d \"q\"')
ftp.set_pasv(False)
got = io.BytesIO(); ftp.retrbinary('RETR d \"q\"/y', got.write); assert got.getvalue() == data
ftp.delete('d \"q\"/y'); ftp.rmd('d \"q\"')
ftp.quit()
";
    must(Command::new("python3").args(["-c", script, &server.addr.to_string()]));
}
