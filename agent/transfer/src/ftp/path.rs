//! Paths as clients write them: always below the root, resolved by their text alone.

/// A path below the root: names without `/`, never `.` or `..`. Empty for the root itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    names: Vec<Vec<u8>>,
}

impl Place {
    /// What `path` means to somebody who is here. `..` takes the last name away, and stays at the root there, as
    /// every FTP server does it; what links are on the way is for the kernel to check.
    pub(crate) fn join(&self, path: &[u8]) -> Place {
        let mut names = if path.first() == Some(&b'/') { Vec::new() } else { self.names.clone() };
        for name in path.split(|&byte| byte == b'/') {
            match name {
                b"" | b"." => (),
                b".." => drop(names.pop()),
                name => names.push(name.to_vec()),
            }
        }
        Place { names }
    }

    /// The folder and the name in it; `None` for the root.
    pub(crate) fn split(&self) -> Option<(Place, &[u8])> {
        let (name, folder) = self.names.split_last()?;
        Some((Place { names: folder.to_vec() }, name))
    }

    /// As the kernel takes it, relative to the root's descriptor.
    pub(crate) fn relative(&self) -> Vec<u8> {
        if self.names.is_empty() { b".".to_vec() } else { self.names.join(&b'/') }
    }

    /// As people read it.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.absolute()).into_owned()
    }

    /// As the client gets it, from `/`.
    pub(crate) fn absolute(&self) -> Vec<u8> {
        [b"/".as_slice(), &self.names.join(&b'/')].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leads_above_the_root() {
        let here = Place::default().join(b"/a/b");
        assert_eq!(here.join(b"../c").absolute(), b"/a/c");
        assert_eq!(here.join(b"../../../../etc/passwd").absolute(), b"/etc/passwd");
        assert_eq!(here.join(b"/").relative(), b".");
        assert_eq!(here.join(b"./x//y/.").relative(), b"a/b/x/y");
        assert_eq!(here.join(b"..").join(b"..").split(), None);
    }
}
