//! What MLST and MLSD say of a file (RFC 3659, 7): `fact=value;` pairs, a space, the name.
//!
//! ```text
//! Type=file;Size=1024;Modify=20240229120000;Perm=adfrw;UNIX.mode=0644;Unique=801-2a; run7.h5
//! ```

use std::time::SystemTime;

use crate::ftp::time;

/// What a name stands for.
///
/// ```
/// assert_eq!(libgrid::ftp::facts::Type::Dir.as_str(), "dir");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// A file.
    File,
    /// A directory.
    Dir,
    /// The directory that is listed.
    Cdir,
    /// The directory above it.
    Pdir,
    /// A symbolic link; what it points to, if that was told.
    Slink(Vec<u8>),
    /// Something else, as the server calls it.
    Other(String),
}

impl Type {
    /// As it is written.
    ///
    /// ```
    /// use libgrid::ftp::facts::Type;
    /// assert_eq!(Type::Slink(Vec::new()).as_str(), "OS.unix=slink");
    /// ```
    pub fn as_str(&self) -> &str {
        match self {
            Type::File => "file",
            Type::Dir => "dir",
            Type::Cdir => "cdir",
            Type::Pdir => "pdir",
            Type::Slink(_) => "OS.unix=slink",
            Type::Other(text) => text,
        }
    }
}

/// Which facts the client wants: OPTS MLST.
///
/// ```
/// use libgrid::ftp::facts::Wanted;
/// let wanted = Wanted::parse(b"Type;Size;Bogus;");
/// assert!(wanted.size && !wanted.modify);
/// assert_eq!(wanted.names(), "Type;Size;");
/// assert_eq!(Wanted::ALL.features(), "Type*;Size*;Modify*;Perm*;UNIX.mode*;UNIX.uid*;UNIX.gid*;UNIX.slink*;Unique*;");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the fact of its name")]
#[expect(clippy::struct_excessive_bools, reason = "a set of facts")]
pub struct Wanted {
    pub kind: bool,
    pub size: bool,
    pub modify: bool,
    pub perm: bool,
    pub mode: bool,
    pub uid: bool,
    pub gid: bool,
    pub slink: bool,
    pub unique: bool,
}

const NAMES: [&str; 9] =
    ["Type", "Size", "Modify", "Perm", "UNIX.mode", "UNIX.uid", "UNIX.gid", "UNIX.slink", "Unique"];

impl Wanted {
    /// All that there are.
    ///
    /// ```
    /// assert!(libgrid::ftp::facts::Wanted::ALL.unique);
    /// ```
    pub const ALL: Wanted = Wanted {
        kind: true,
        size: true,
        modify: true,
        perm: true,
        mode: true,
        uid: true,
        gid: true,
        slink: true,
        unique: true,
    };

    /// Reads the argument of OPTS MLST; unknown facts are left out, as RFC 3659, 7.9 says.
    ///
    /// ```
    /// assert!(libgrid::ftp::facts::Wanted::parse(b"size;").size);
    /// ```
    pub fn parse(list: &[u8]) -> Wanted {
        let has = |name: &str| {
            list.split(|&byte| byte == b';')
                .any(|word| word.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
        };
        let [kind, size, modify, perm, mode, uid, gid, slink, unique] = NAMES.map(has);
        Wanted { kind, size, modify, perm, mode, uid, gid, slink, unique }
    }

    fn each(self) -> impl Iterator<Item = (&'static str, bool)> {
        let set = [
            self.kind,
            self.size,
            self.modify,
            self.perm,
            self.mode,
            self.uid,
            self.gid,
            self.slink,
            self.unique,
        ];
        NAMES.into_iter().zip(set)
    }

    /// Those that are wanted, as the reply to OPTS MLST names them.
    ///
    /// ```
    /// assert_eq!(libgrid::ftp::facts::Wanted::parse(b"").names(), "");
    /// ```
    pub fn names(self) -> String {
        self.each().filter(|(_, set)| *set).map(|(name, _)| format!("{name};")).collect()
    }

    /// All that there are, with a star at those that are wanted, as FEAT says them.
    ///
    /// ```
    /// assert!(libgrid::ftp::facts::Wanted::parse(b"Size").features().starts_with("Type;Size*;"));
    /// ```
    pub fn features(self) -> String {
        self.each().map(|(name, set)| format!("{name}{};", if set { "*" } else { "" })).collect()
    }
}

/// A file, as MLST and MLSD tell of it. What was not told is `None`.
///
/// ```
/// use libgrid::ftp::facts::{Entry, Type, Wanted};
/// let entry = Entry::parse(b"Type=file;Size=42;Modify=20240229120000; run 7.h5").unwrap();
/// assert_eq!((entry.kind.clone(), entry.size, entry.name.as_slice()), (Some(Type::File), Some(42), &b"run 7.h5"[..]));
/// assert_eq!(entry.to_line(Wanted::ALL), b"Type=file;Size=42;Modify=20240229120000; run 7.h5");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Type.
    pub kind: Option<Type>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// When it was written last.
    pub modify: Option<SystemTime>,
    /// What the user may do, as RFC 3659, 7.5.5 has it: `adfrw` and others.
    pub perm: Option<String>,
    /// Permission bits, of which the lowest 12 count.
    pub mode: Option<u32>,
    /// Number of the owner.
    pub uid: Option<u32>,
    /// Number of the group.
    pub gid: Option<u32>,
    /// The same for two names of one file.
    pub unique: Option<String>,
    /// The name, or the whole path with MLST.
    pub name: Vec<u8>,
}

impl Entry {
    /// The line without its end. Bytes below 32 in names are kept but for line ends, which become `?`.
    ///
    /// ```
    /// use libgrid::ftp::facts::{Entry, Wanted};
    /// let entry = Entry { size: Some(1), name: b"a".to_vec(), ..Entry::default() };
    /// assert_eq!(entry.to_line(Wanted::ALL), b"Size=1; a");
    /// ```
    pub fn to_line(&self, wanted: Wanted) -> Vec<u8> {
        use std::fmt::Write as _;
        let mut facts = String::new();
        // Writing to a String cannot fail.
        if let Some(kind) = self.kind.as_ref().filter(|_| wanted.kind) {
            let _ = write!(facts, "Type={};", kind.as_str());
        }
        if let Some(size) = self.size.filter(|_| wanted.size) {
            let _ = write!(facts, "Size={size};");
        }
        if let Some(modify) = self.modify.filter(|_| wanted.modify) {
            let _ = write!(facts, "Modify={};", time::format(modify));
        }
        if let Some(perm) = self.perm.as_ref().filter(|_| wanted.perm) {
            let _ = write!(facts, "Perm={perm};");
        }
        if let Some(mode) = self.mode.filter(|_| wanted.mode) {
            let _ = write!(facts, "UNIX.mode={:04o};", mode & 0o7777);
        }
        if let Some(uid) = self.uid.filter(|_| wanted.uid) {
            let _ = write!(facts, "UNIX.uid={uid};");
        }
        if let Some(gid) = self.gid.filter(|_| wanted.gid) {
            let _ = write!(facts, "UNIX.gid={gid};");
        }
        let mut line = facts.into_bytes();
        if let Some(Type::Slink(target)) = self.kind.as_ref().filter(|_| wanted.slink)
            && !target.is_empty()
        {
            line.extend(b"UNIX.slink=");
            // A semicolon would end the fact.
            line.extend(target.iter().map(|&byte| if byte == b';' || byte < 32 { b'?' } else { byte }));
            line.push(b';');
        }
        if let Some(unique) = self.unique.as_ref().filter(|_| wanted.unique) {
            line.extend(format!("Unique={unique};").bytes());
        }
        line.push(b' ');
        line.extend(
            self.name.iter().map(|&byte| if matches!(byte, b'\r' | b'\n' | 0) { b'?' } else { byte }),
        );
        line
    }

    /// Reads a line without its end; facts that are unknown or make no sense are left out. `None` if it has no
    /// name.
    ///
    /// ```
    /// assert!(libgrid::ftp::facts::Entry::parse(b"Size=1;").is_none());
    /// ```
    pub fn parse(line: &[u8]) -> Option<Entry> {
        // The facts hold no space (RFC 3659, 7.2), but targets of links may: a semicolon comes before the right one.
        let space = match line.first()? {
            b' ' => 0,
            _ => line.windows(2).position(|pair| pair == b"; ")? + 1,
        };
        let (facts, name) = (&line[..space], &line[space + 1..]);
        if name.is_empty() {
            return None;
        }
        let mut entry = Entry { name: name.to_vec(), ..Entry::default() };
        let mut target = Vec::new();
        for fact in facts.split(|&byte| byte == b';') {
            let Some(equals) = fact.iter().position(|&byte| byte == b'=') else { continue };
            let (key, value) = (fact[..equals].to_ascii_lowercase(), &fact[equals + 1..]);
            let text = std::str::from_utf8(value).ok();
            match key.as_slice() {
                b"type" => entry.kind = text.map(type_of),
                b"size" => entry.size = text.and_then(|text| text.parse().ok()),
                b"modify" => entry.modify = time::parse(value),
                b"perm" => entry.perm = text.map(str::to_owned),
                b"unix.mode" => entry.mode = text.and_then(|text| u32::from_str_radix(text, 8).ok()),
                b"unix.uid" => entry.uid = text.and_then(|text| text.parse().ok()),
                b"unix.gid" => entry.gid = text.and_then(|text| text.parse().ok()),
                b"unix.slink" => target = value.to_vec(),
                b"unique" => entry.unique = text.map(str::to_owned),
                _ => (),
            }
        }
        if let Some(Type::Slink(to)) = &mut entry.kind
            && to.is_empty()
        {
            *to = target;
        }
        Some(entry)
    }
}

fn type_of(text: &str) -> Type {
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "file" => Type::File,
        "dir" => Type::Dir,
        "cdir" => Type::Cdir,
        "pdir" => Type::Pdir,
        _ => match lower.strip_prefix("os.unix=slink") {
            Some("") => Type::Slink(Vec::new()),
            Some(_) => Type::Slink(text.as_bytes()["OS.unix=slink:".len().min(text.len())..].to_vec()),
            None => Type::Other(text.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            size: Option<u64>, seconds in proptest::option::of(0u64..4_000_000_000), mode in proptest::option::of(0u32..0o10000),
            uid: Option<u32>, gid: Option<u32>, name in "[ -~]{1,20}", which in 0..4u8, target in "[a-z /]{0,9}",
        ) {
            let kind = match which {
                0 => None,
                1 => Some(Type::File),
                2 => Some(Type::Cdir),
                _ => Some(Type::Slink(target.into_bytes())),
            };
            let modify = seconds.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
            let entry = Entry { kind, size, modify, mode, uid, gid, perm: None, unique: None, name: name.into_bytes() };
            prop_assert_eq!(Entry::parse(&entry.to_line(Wanted::ALL)), Some(entry));
        }

        #[test]
        fn any_line_is_an_entry_or_none(line in vec(any::<u8>(), 0..80), text in "[Tt]ype=[ -~é]{0,30}; x") {
            let _ = Entry::parse(&line);
            let _ = Entry::parse(text.as_bytes());
        }
    }
}
