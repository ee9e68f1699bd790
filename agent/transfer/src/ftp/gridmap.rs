//! The map of Globus from subjects of certificates to local users.
//!
//! ```text
//! # a comment
//! "/O=Grid/CN=Alice Smith" alice,asmith
//! /O=Grid/CN=Bob bob
//! ```

use std::collections::HashMap;

/// Longest file that is read, in bytes.
pub(crate) const MAX_FILE: u64 = 16 << 20;

#[derive(Debug, Default)]
pub(crate) struct Gridmap {
    users: HashMap<String, String>,
}

impl Gridmap {
    /// Reads the map; the error names the line.
    pub(crate) fn parse(text: &str) -> Result<Gridmap, String> {
        let mut users = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (subject, rest) = match line.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
                None => line.split_once(char::is_whitespace).unwrap_or((line, "")),
            };
            // Of several users, the first is the one that is meant when the client names none.
            let user = rest.trim().split([',', ' ', '\t']).next().unwrap_or_default();
            if subject.is_empty() || user.is_empty() {
                return Err(format!("line {} is not a subject and a user", number + 1));
            }
            users.insert(normal(subject), user.to_owned());
        }
        Ok(Gridmap { users })
    }

    pub(crate) fn user(&self, subject: &str) -> Option<&str> {
        self.users.get(&normal(subject)).map(String::as_str)
    }
}

/// One spelling of the two names that are spelled in several ways.
fn normal(subject: &str) -> String {
    subject.replace("/E=", "/emailAddress=").replace("/Email=", "/emailAddress=").replace("/USERID=", "/UID=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_found_however_they_are_written() {
        let map = Gridmap::parse("# x\n\"/O=Grid/CN=A B\" alice,al\n\n/O=Grid/E=b@x/CN=Bob  bob\n").unwrap();
        assert_eq!(map.user("/O=Grid/CN=A B"), Some("alice"));
        assert_eq!(map.user("/O=Grid/emailAddress=b@x/CN=Bob"), Some("bob"));
        assert_eq!(map.user("/O=Grid/CN=A"), None);
        assert!(Gridmap::parse("\"/CN=x\"\n").unwrap_err().contains("line 1"));
    }
}
