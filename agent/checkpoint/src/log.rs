//! What CRIU writes into its log, as far as it is told to a user.

use std::fs;
use std::path::Path;

/// Bytes of a log that are looked at.
const MOST: u64 = 1 << 20;

/// Errors that CRIU logs and gets over: it tries to raise its own limit of descriptors, which takes
/// CAP_SYS_RESOURCE.
const HARMLESS: [&str; 1] = ["Can't setup RLIMIT_NOFILE"];

/// The first error of a log: what follows is mostly its consequence.
pub(crate) fn first_error(log: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = Vec::new();
    fs::File::open(log).ok()?.take(MOST).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let error = text
        .lines()
        .find(|line| line.contains("Error (") && !HARMLESS.iter().any(|harmless| line.contains(harmless)))?;
    Some(sentence(error))
}

/// `(00.1)      7: Error (criu/x.c:12): Can't do it` becomes `Can't do it (criu/x.c:12)`.
pub(crate) fn sentence(line: &str) -> String {
    let Some((_, rest)) = line.split_once("Error (") else { return line.trim().to_owned() };
    match rest.split_once("): ") {
        Some((place, what)) => format!("{} ({place})", what.trim().trim_end_matches('.')),
        None => rest.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_that_matters_is_told_with_its_place() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = "(00.1) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: no\n\
                   (00.2)      7: Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=0 path=/dev/null\n\
                   (00.3) Error (criu/cr-dump.c:2111): Dumping FAILED.\n";
        fs::write(file.path(), log).unwrap();
        let told = first_error(file.path()).unwrap();
        assert_eq!(told, "Can't lookup mount=24 for fd=0 path=/dev/null (criu/files-reg.c:1790)");
        assert_eq!(first_error("/nowhere".as_ref()), None);
    }
}
