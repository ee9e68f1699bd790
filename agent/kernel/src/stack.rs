//! Without eBPF: processes are found in `/proc` when somebody looks, and get their ids then.
//!
//! So one that comes and goes between two looks never has an id, and nobody hears of its end. Which process has which
//! id is in a file of this boot's, for the agent that comes after this one.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use libgrid::ids::{Gpid, NodeId};

use crate::proc::Stat;
use crate::serials::Serials;

/// A process: its pid, and when it was started, in ticks from the start of the machine. A pid alone is used again.
type Key = (u32, u64);

/// The ids that were given out.
#[derive(Debug)]
pub(crate) struct Table {
    path: PathBuf,
    node: NodeId,
    given: HashMap<Key, (Gpid, Option<Gpid>)>,
    serials: Serials,
    left: Range<u32>,
}

impl Table {
    /// Takes up the table in the file `path`. What is damaged there is left out.
    pub(crate) fn open(path: PathBuf, node: NodeId, serials: Serials) -> Self {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let given = text.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let key = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some((key, (words.next()?.parse().ok()?, words.next()?.parse().ok())))
        });
        Self { path, node, given: given.collect(), serials, left: 0..0 }
    }

    /// The ids of these processes; those that have none get one. `all` are the processes of all tasks.
    pub(crate) fn give(&mut self, all: &[Stat], proc: &Path) -> io::Result<Vec<(Gpid, Option<Gpid>)>> {
        let mut ids = Vec::with_capacity(all.len());
        let mut news = false;
        // Parents first, so that their children can name them.
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|at| (all[*at].started, all[*at].pid));
        for at in order {
            let stat = &all[at];
            let known = self.given.get(&(stat.pid, stat.started)).copied();
            let id = match known {
                Some(id) => id,
                None => {
                    let parent = all.iter().find(|other| other.pid == stat.parent);
                    let parent = parent.and_then(|parent| self.given.get(&(parent.pid, parent.started)));
                    let parent = parent.map(|(gpid, _)| *gpid);
                    let id = (self.next()?, parent);
                    self.given.insert((stat.pid, stat.started), id);
                    news = true;
                    id
                }
            };
            ids.push((at, id));
        }
        if news {
            self.save(proc)?;
        }
        ids.sort_by_key(|(at, _)| *at);
        Ok(ids.into_iter().map(|(_, id)| id).collect())
    }

    /// Gives a process the id that it had before it moved.
    pub(crate) fn set(
        &mut self,
        stat: &Stat,
        gpid: Gpid,
        parent: Option<Gpid>,
        proc: &Path,
    ) -> io::Result<()> {
        self.given.insert((stat.pid, stat.started), (gpid, parent));
        self.save(proc)
    }

    /// The pid of a process that was seen, and is still there.
    pub(crate) fn find(&self, gpid: Gpid, proc: &Path) -> Option<u32> {
        let (key, _) = self.given.iter().find(|(_, (given, _))| *given == gpid)?;
        lives(*key, proc).then_some(key.0)
    }

    fn next(&mut self) -> io::Result<Gpid> {
        if self.left.is_empty() {
            let (first, end) = self.serials.take()?;
            self.left = first..end;
        }
        let spent = || io::Error::other("this node has given out every id that it had");
        let serial = self.left.next().ok_or_else(spent)?;
        Ok(Gpid { node: self.node, serial })
    }

    fn save(&mut self, proc: &Path) -> io::Result<()> {
        self.given.retain(|key, _| lives(*key, proc));
        let mut text = String::new();
        for ((pid, started), (gpid, parent)) in &self.given {
            let parent = parent.map_or("-".into(), |parent| parent.to_string());
            let _ = writeln!(text, "{pid} {started} {gpid} {parent}");
        }
        let part = self.path.with_extension("part");
        fs::write(&part, text)?;
        fs::rename(&part, &self.path)
    }
}

fn lives((pid, started): Key, proc: &Path) -> bool {
    Stat::of(pid, proc).is_some_and(|stat| stat.started == started)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PROC: &str = "/proc";

    fn table(folder: &Path) -> Table {
        Table::open(folder.join("table"), NodeId(3), Serials::new(folder.join("serials")))
    }

    #[test]
    fn a_process_keeps_its_id_and_another_one_gets_another() {
        let folder = tempfile::tempdir().unwrap();
        let proc = Path::new(PROC);
        let mut children: Vec<_> =
            (0..2).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
        let me = std::process::id();
        let pids = [me, children[0].id(), children[1].id()];
        let stats: Vec<Stat> = pids.iter().map(|pid| Stat::of(*pid, proc).unwrap()).collect();
        let ids = table(folder.path()).give(&stats, proc).unwrap();
        assert!(ids[0].0 != ids[1].0 && ids[1].0 != ids[2].0 && ids[0].0.node == NodeId(3), "{ids:?}");
        assert_eq!((ids[0].1, ids[1].1), (None, Some(ids[0].0)), "children name their parent");
        // The next agent.
        let mut again = table(folder.path());
        assert_eq!(again.give(&stats, proc).unwrap(), ids);
        assert_eq!(again.find(ids[1].0, proc), Some(pids[1]));
        children[0].kill().unwrap();
        children[0].wait().unwrap();
        assert_eq!(again.find(ids[1].0, proc), None, "it has ended");
        let another = Stat { started: stats[1].started + 1, ..stats[1].clone() };
        let given = again.give(&[another], proc).unwrap()[0].0;
        assert!(ids.iter().all(|(gpid, _)| *gpid != given), "its pid alone is used again");
        children[1].kill().unwrap();
        children[1].wait().unwrap();
    }
}
