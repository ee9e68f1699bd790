//! Any bytes on a control connection: lines stay within their limit, however the bytes are cut, and every line is a
//! command or is refused with one clean line of text.

use libgrid::ftp::command::Command;
use libgrid::ftp::line::{LineReader, MAX_LINE};
use libgrid::ftp::reply::{Reply, ReplyReader};

use crate::mutation::mutate;

/// Commands to damage, as real clients send them.
const VALID: &[u8] = b"USER anonymous\r\nPASS x@\r\nFEAT\r\nSITE CLIENTINFO scheme=file;appname=x;\r\nTYPE I\r\nMODE E\r\n\
    OPTS RETR Parallelism=4,4,4;\r\nPORT 127,0,0,1,200,10\r\nEPRT |2|::1|4000|\r\nREST 0-5,7-9\r\nRETR /a b\r\n\
    ERET P 1000 5000 x\r\nESTO A 5 x\r\nCKSM MD5 0 -1 x\r\nSITE UTIME x 20240101000000 20240101000000 \
    20240101000000 UTC\r\nMFMT 20240229120000 x\r\nSPOR 1,2,3,4,5,6 1,2,3,4,5,6\r\nDCAU S /CN=x\r\n\xff\xf4\xff\xf2ABOR\r\n";

/// The first byte says whether the others are a stream, or damage one.
pub(crate) fn run(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    match how % 2 {
        0 => stream(rest),
        _ => stream(&mutate(VALID.to_vec(), rest)),
    }
}

fn stream(bytes: &[u8]) {
    let mut reader = LineReader::new(MAX_LINE);
    let mut rest = bytes;
    while let Some(line) = reader.next(&mut rest) {
        match line {
            Ok(line) => {
                assert!(line.len() <= MAX_LINE && !line.contains(&b'\n'));
                command(&line);
            }
            Err(error) => assert!(bytes.len() > error.limit),
        }
    }
    assert!(rest.is_empty());
    // The same bytes from a server.
    let mut reader = ReplyReader::default();
    for line in bytes.split(|&byte| byte == b'\n') {
        match reader.line(line) {
            Ok(Some(reply)) => assert!((100..700).contains(&reply.code) && !reply.text.is_empty()),
            Ok(None) => (),
            Err(_) => break,
        }
    }
}

fn command(line: &[u8]) {
    let Err(error) = Command::parse(line) else { return };
    assert!(matches!(error.code(), 500 | 501));
    let reply = Reply::new(error.code(), error.to_string()).to_bytes();
    assert_eq!(reply.iter().filter(|&&byte| byte == b'\n').count(), 1, "{error}");
    assert!(reply.len() < 1024, "{error}");
}
