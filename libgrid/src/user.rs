//! Whose rights a process has: the agent is root, and does nothing with files of users itself.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::str::FromStr;

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// Whose rights a process has.
///
/// ```
/// use libgrid::user::User;
/// let user: User = "1000:1000:27,100".parse()?;
/// assert_eq!((user.uid, user.groups.len()), (1000, 2));
/// assert_eq!(user.to_string(), "1000:1000:27,100");
/// # Ok::<(), std::num::ParseIntError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

impl User {
    /// A task's user, who is in no other group.
    ///
    /// ```
    /// assert_eq!(libgrid::user::User::of_task(1_900_000_000).gid, 1_900_000_000);
    /// ```
    pub fn of_task(uid: u32) -> Self {
        Self { uid, gid: uid, groups: Vec::new() }
    }

    /// A user of this machine with the groups that they have now.
    ///
    /// ```
    /// assert_eq!(libgrid::user::User::of_machine(0, 0).uid, 0);
    /// ```
    pub fn of_machine(uid: u32, gid: u32) -> Self {
        let known = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        let groups = known.and_then(|user| {
            let name = CString::new(user.name).ok()?;
            nix::unistd::getgrouplist(&name, gid.into()).ok()
        });
        Self { uid, gid, groups: groups.unwrap_or_default().into_iter().map(Gid::as_raw).collect() }
    }

    /// Gives this process the user's rights, and no other.
    ///
    /// # Errors
    /// Where the process may not.
    ///
    /// ```no_run
    /// libgrid::user::User::of_task(1_900_000_000).enter()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn enter(&self) -> io::Result<()> {
        let groups: Vec<_> = self.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setgroups(&groups)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        Ok(())
    }
}

/// `UID:GID:GROUP,GROUP`, as the program takes it.
impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<_> = self.groups.iter().map(u32::to_string).collect();
        write!(f, "{}:{}:{}", self.uid, self.gid, groups.join(","))
    }
}

impl FromStr for User {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().unwrap_or_default();
        let (uid, gid, groups) = (next().parse()?, next().parse()?, next());
        let groups = groups.split(',').filter(|group| !group.is_empty()).map(str::parse);
        Ok(Self { uid, gid, groups: groups.collect::<Result<_, _>>()? })
    }
}
