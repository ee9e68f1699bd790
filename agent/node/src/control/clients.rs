//! How many connections each user of this machine holds: one of them must not take what all need.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections that a user may hold at once. Root may hold any number.
pub(super) const MOST: usize = 256;

#[derive(Clone, Default)]
pub(super) struct Clients(Arc<Mutex<HashMap<u32, usize>>>);

/// A connection that is counted until it is dropped.
pub(super) struct Taken {
    clients: Clients,
    uid: u32,
}

impl Clients {
    /// Counts one more; nothing if the user has as many as may be.
    pub(super) fn take(&self, uid: u32) -> Option<Taken> {
        let mut all = self.lock();
        let count = all.get(&uid).copied().unwrap_or(0);
        if count >= MOST && uid != 0 {
            return None;
        }
        all.insert(uid, count + 1);
        drop(all);
        Some(Taken { clients: self.clone(), uid })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut all = self.clients.lock();
        if let Some(count) = all.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_so_many_and_root_any_number() {
        let clients = Clients::default();
        let mut held: Vec<Taken> = (0..MOST).filter_map(|_| clients.take(1000)).collect();
        assert!(held.len() == MOST && clients.take(1000).is_none());
        assert!(clients.take(1001).is_some());
        held.pop();
        assert!(clients.take(1000).is_some());
        assert_eq!((0..=MOST).filter_map(|_| clients.take(0)).count(), MOST + 1);
        drop(held);
        assert!(clients.lock().is_empty());
    }
}
