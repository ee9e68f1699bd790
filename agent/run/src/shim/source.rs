//! What the events of a shim's epoll are about.

/// What an epoll event is about: a kind in the upper half, a task's slot in the lower.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Listener,
    Agent,
    Timer,
    End(u32),
    Stdout(u32),
    Stderr(u32),
    Input(u32),
    Worker(u32),
    Call(u32),
}

impl Source {
    pub(super) fn to_u64(self) -> u64 {
        let (kind, slot) = match self {
            Source::Listener => (0, 0),
            Source::Agent => (1, 0),
            Source::Timer => (2, 0),
            Source::End(slot) => (3, slot),
            Source::Stdout(slot) => (4, slot),
            Source::Stderr(slot) => (5, slot),
            Source::Input(slot) => (6, slot),
            Source::Worker(slot) => (7, slot),
            Source::Call(slot) => (8, slot),
        };
        kind << 32 | u64::from(slot)
    }

    pub(super) fn from_u64(number: u64) -> Option<Self> {
        let slot = number as u32;
        Some(match number >> 32 {
            0 => Source::Listener,
            1 => Source::Agent,
            2 => Source::Timer,
            3 => Source::End(slot),
            4 => Source::Stdout(slot),
            5 => Source::Stderr(slot),
            6 => Source::Input(slot),
            7 => Source::Worker(slot),
            8 => Source::Call(slot),
            _ => return None,
        })
    }
}
