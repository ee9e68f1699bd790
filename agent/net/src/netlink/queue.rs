//! Whether a link that has no cable to pull lets anything pass (`linux/pkt_sched.h`).

use std::io;

use super::Netlink;
use super::message::Message;

const TCA_KIND: u16 = 1;

/// In the place of the link's own queue (`TC_H_ROOT`).
const ROOT: u32 = u32::MAX;

/// The queue that drops everything, and says that it was sent; in every kernel with traffic control, since 4.19.
const BLACKHOLE: &str = "blackhole";

/// About a link's own queue (`struct tcmsg`).
fn about(kind: u16, flags: i32, link: u32) -> Message {
    let mut fixed = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    for word in [link, 0, ROOT, 0] {
        fixed.extend(word.to_ne_bytes());
    }
    Message::new(kind, flags, &fixed)
}

// === impl Netlink ===

impl Netlink {
    /// Drops what is sent on a link from now on. Its addresses and routes stay.
    pub(crate) fn discard(&self, link: u32) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        self.change(about(libc::RTM_NEWQDISC, flags, link).text(TCA_KIND, BLACKHOLE))
    }

    /// Ends this, if it was so.
    pub(crate) fn pass(&self, link: u32) -> io::Result<()> {
        match self.change(about(libc::RTM_DELQDISC, 0, link)) {
            // A kernel without traffic control never did.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => Ok(()),
            result => result,
        }
    }
}
