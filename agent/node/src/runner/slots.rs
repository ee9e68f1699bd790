//! Places for tasks: each is a local user, a folder and a control group of one number.
//!
//! A place that its task left clean keeps its folder and its control group for the next task with the same limits;
//! that makes a short task start in half the time. At most [`SPARE`] wait.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;

use grid_qos::Limits;
use libgrid::ids::NodeId;

/// The local users that tasks run as. Above the ranges that systemd gives to containers, below 2^31, which some
/// programs take for the end.
const UIDS: Range<u32> = 1_900_000_000..1_900_065_536;

/// Whether tasks run as this user.
pub(crate) fn is_task(uid: u32) -> bool {
    UIDS.contains(&uid)
}

/// How many free places keep their folders and groups.
const SPARE: usize = 256;

/// How many users each node begins with that no other begins with: odd, so that all of the range is used. As long as each has
/// fewer tasks than this, a task that comes from another node finds its user free.
const SPREAD: u32 = 521;

/// A place that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    number: u32,
    /// The limits that its control group has, if that is there.
    group: Option<Limits>,
}

pub(super) struct Slots {
    folder: PathBuf,
    free: Vec<Slot>,
    /// The numbers of places that are taken or in `free`.
    known: HashSet<u32>,
    /// The numbers of places whose users have checkpoints to go on from.
    reserved: HashSet<u32>,
    /// The first of this node's own.
    first: u32,
    next: u32,
}

impl Slot {
    pub(super) fn uid(&self) -> u32 {
        UIDS.start + self.number
    }

    /// The name of its folder and of its control group.
    pub(super) fn name(&self) -> String {
        format!("s{}", self.number)
    }

    /// The control group is not there any more, or not as new.
    pub(super) fn forget_group(&mut self) {
        self.group = None;
    }
}

impl Slots {
    /// Each node begins elsewhere in the range, so that a task that goes on from a checkpoint of another node finds its user
    /// free.
    pub(super) fn new(folder: PathBuf, me: NodeId) -> Self {
        let first = me.0.wrapping_mul(SPREAD) % UIDS.len() as u32;
        let (known, reserved) = (HashSet::new(), HashSet::new());
        Self { folder, free: Vec::new(), known, reserved, first, next: first }
    }

    /// Whether it is one that no other node begins with.
    fn is_own(&self, number: u32) -> bool {
        let count = UIDS.len() as u32;
        (number + count - self.first) % count < SPREAD
    }

    pub(super) fn folder(&self, slot: &Slot) -> PathBuf {
        self.folder.join(slot.name())
    }

    /// Takes the place of a task that a shim kept.
    pub(super) fn adopt(&mut self, uid: u32) -> Option<Slot> {
        let number = uid.checked_sub(UIDS.start).filter(|number| *number < UIDS.len() as u32)?;
        self.known.insert(number).then_some(Slot { number, group: None })
    }

    /// Takes a place, and says whether its control group is there with these limits. None if all are taken.
    pub(super) fn take(&mut self, limits: Limits) -> Option<(Slot, bool)> {
        let open = |slot: &Slot| !self.reserved.contains(&slot.number) && self.is_own(slot.number);
        let same = self.free.iter().rposition(|slot| slot.group == Some(limits) && open(slot));
        let slot = match same.or_else(|| self.free.iter().rposition(open)) {
            Some(at) => Some(self.free.swap_remove(at)),
            None => self.fresh(),
        };
        slot.map(|slot| (Slot { group: Some(limits), ..slot }, same.is_some()))
    }

    /// Takes the place of this user, as [`Slots::take`] does. None if it is taken.
    pub(super) fn take_user(&mut self, uid: u32, limits: Limits) -> Option<(Slot, bool)> {
        let number = uid.checked_sub(UIDS.start).filter(|number| *number < UIDS.len() as u32)?;
        let free = self.free.iter().position(|slot| slot.number == number);
        let slot = match free {
            Some(at) => self.free.swap_remove(at),
            None => self.known.insert(number).then_some(Slot { number, group: None })?,
        };
        let ready = slot.group == Some(limits);
        Some((Slot { group: Some(limits), ..slot }, ready))
    }

    /// Keeps the places of these users for [`Slots::take_user`], and no others.
    pub(super) fn reserve(&mut self, uids: impl Iterator<Item = u32>) {
        self.reserved = uids.filter_map(|uid| uid.checked_sub(UIDS.start)).collect();
    }

    fn fresh(&mut self) -> Option<Slot> {
        let count = UIDS.len() as u32;
        if self.known.len().max(self.reserved.len()) as u32 >= count {
            return None;
        }
        for _ in 0..count {
            let number = self.next;
            self.next = (self.next + 1) % count;
            if !self.reserved.contains(&number) && self.known.insert(number) {
                return Some(Slot { number, group: None });
            }
        }
        None
    }

    /// Gives a clean place back. One that is too many is returned: its folder and group are to be removed.
    pub(super) fn give_back(&mut self, slot: Slot) -> Option<Slot> {
        // One that came with a task from another node may come again with the next.
        let spare = self.free.len() < SPARE && self.is_own(slot.number);
        if spare || self.reserved.contains(&slot.number) {
            self.free.push(slot);
            return None;
        }
        self.known.remove(&slot.number);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { cpu: 1000, memory: 1 << 20, pids: 10 };

    #[test]
    fn a_group_is_ready_only_for_the_same_limits() {
        let mut slots = Slots::new("/tasks".into(), NodeId(0));
        let (slot, ready) = slots.take(LIMITS).unwrap();
        assert!(!ready);
        slots.give_back(slot.clone());
        let (other, ready) = slots.take(Limits { cpu: 1, ..LIMITS }).unwrap();
        assert!(
            !ready && other.number == slot.number,
            "the place is used again, its group is not as it should be"
        );
        slots.give_back(other);
        assert!(slots.take(Limits { cpu: 1, ..LIMITS }).unwrap().1);
    }

    #[test]
    fn no_two_tasks_share_a_user() {
        let mut slots = Slots::new("/tasks".into(), NodeId(0));
        let adopted = slots.adopt(UIDS.start + 1).unwrap();
        assert!(slots.adopt(UIDS.start + 1).is_none() && slots.adopt(1000).is_none());
        let taken: HashSet<u32> = (0..500).map(|_| slots.take(LIMITS).unwrap().0.uid()).collect();
        assert!(taken.len() == 500 && !taken.contains(&adopted.uid()));
    }

    #[test]
    fn the_place_of_a_user_with_a_checkpoint_waits_for_the_user() {
        let mut slots = Slots::new("/tasks".into(), NodeId(0));
        let (slot, _) = slots.take(LIMITS).unwrap();
        let uid = slot.uid();
        slots.reserve([uid, UIDS.start + 2].into_iter());
        assert!(slots.take_user(uid, LIMITS).is_none(), "it is still taken");
        slots.give_back(slot);
        let others: Vec<u32> = (0..5).map(|_| slots.take(LIMITS).unwrap().0.uid()).collect();
        assert!(!others.contains(&uid) && !others.contains(&(UIDS.start + 2)), "{others:?}");
        let (again, ready) = slots.take_user(uid, LIMITS).unwrap();
        assert!(ready && again.uid() == uid);
        assert!(slots.take_user(UIDS.start + 2, LIMITS).is_some_and(|(_, ready)| !ready));
        assert!(slots.take_user(1000, LIMITS).is_none());
    }

    #[test]
    fn what_came_from_another_node_is_not_given_to_new_tasks() {
        let [mut here, mut there] = [1, 2].map(|node| Slots::new("/tasks".into(), NodeId(node)));
        let (slot, _) = there.take(LIMITS).unwrap();
        let uid = slot.uid();
        let (guest, _) = here.take_user(uid, LIMITS).unwrap();
        assert!(here.give_back(guest).is_some(), "its place is removed");
        here.reserve([uid].into_iter());
        let (guest, _) = here.take_user(uid, LIMITS).unwrap();
        assert!(here.give_back(guest).is_none(), "it may come back");
        here.reserve([].into_iter());
        let taken: Vec<u32> = (0..SPREAD).map(|_| here.take(LIMITS).unwrap().0.uid()).collect();
        assert!(!taken.contains(&uid));
        assert!(here.take_user(uid, LIMITS).is_some());
    }

    #[test]
    fn no_more_than_the_spare_ones_are_kept() {
        let mut slots = Slots::new("/tasks".into(), NodeId(0));
        let taken: Vec<_> = (0..SPARE + 3).map(|_| slots.take(LIMITS).unwrap().0).collect();
        assert_eq!(taken.into_iter().filter_map(|slot| slots.give_back(slot)).count(), 3);
    }
}
