//! Why a job waits, in one sentence, with the numbers, and what to do.

use libgrid::address::LAST_SERIAL;
use libgrid::ids::JobId;
use libgrid::node::Resources;
use libgrid::units::{Bytes, Cpus};

use super::place::STUCK;
use super::{Home, Job, Node};

/// An amount of cores with its noun.
fn cores(milli: u32) -> String {
    // Zero is an amount here, though no task can ask for it.
    if milli == 0 { "0 cores".into() } else { Cpus::from_milli(milli).in_words() }
}

fn nodes(count: usize) -> String {
    if count == 1 { "the only node".into() } else { format!("{count} nodes") }
}

impl Home {
    /// Why tasks of the job wait; `None` if none does.
    pub(super) fn explain(&self, id: JobId, job: &Job) -> Option<String> {
        if job.waiting.is_empty() {
            return None;
        }
        if let Some(blocked) = self.blocked(id, job) {
            return Some(blocked);
        }
        if let Some(tasks) = self.stuck.get(&job.record.origin.uid).filter(|tasks| tasks.len() >= STUCK)
            && let Some(first) = tasks.first()
        {
            return Some(format!(
                "results of {} tasks of its owner cannot be brought home: see gridctl status {first}",
                tasks.len()
            ));
        }
        let stuck = job.stuck(id, &self.stuck).count();
        if job.may_join(stuck) == 0 {
            return Some(format!(
                "{} of its tasks run, as many as its array lets run at once: starts when one of them ends",
                job.active.len() - stuck
            ));
        }
        if job.lacks_addresses(&self.serials) {
            return Some(format!(
                "all {LAST_SERIAL} addresses that node {} gives to tasks with --net grid are in use: starts when such a task ends",
                self.me
            ));
        }
        if let Some(impossible) = self.impossible(job) {
            return Some(impossible);
        }
        let need = job.record.spec.needs();
        let looked_at = self.looked_at(job);
        let among = nodes(looked_at.len());
        if job.asked as usize >= job.waiting.len() {
            return Some(format!("asking for room on {among}"));
        }
        let large = looked_at.iter().filter(|node| node.info.total.holds(need));
        if large.clone().all(|node| node.info.drained) {
            let drained: Vec<_> = large.map(|node| node.info.node).collect();
            return Some(match drained.as_slice() {
                [node] => {
                    format!("the only node that may run it, {node}, is drained: gridctl drain {node} --undo")
                }
                all => {
                    format!("all {} nodes that may run it are drained: gridctl drain NODE --undo", all.len())
                }
            });
        }
        let open: Vec<_> = looked_at.iter().filter(|node| !node.info.drained).collect();
        let among = nodes(open.len());
        let free = open.iter().map(|node| node.free).max_by_key(|free| (free.cpu, free.memory));
        let Resources { cpu, memory } = free.unwrap_or_default();
        let place =
            if open.len() == 1 { format!("{among} has") } else { format!("the freest of {among} has") };
        let drained: Vec<String> =
            large.filter(|node| node.info.drained).map(|node| node.info.node.to_string()).collect();
        let and = match drained.as_slice() {
            [] => String::new(),
            [node] => format!("; node {node} is drained, and takes none"),
            nodes => format!("; nodes {} are drained, and take none", nodes.join(", ")),
        };
        Some(format!(
            "needs {} and {} of memory; {place} {} and {} free: starts when running tasks end{and}",
            cores(need.cpu),
            Bytes(need.memory),
            cores(cpu),
            Bytes(memory)
        ))
    }

    /// The nodes that answer and may run it.
    fn looked_at(&self, job: &Job) -> Vec<&Node> {
        self.nodes.values().filter(|node| node.up && job.accepts(node)).collect()
    }

    /// Why no node that answers could run a task of the job, however little else ran there; nothing if one could.
    pub(super) fn impossible(&self, job: &Job) -> Option<String> {
        let need = job.record.spec.needs();
        let looked_at = self.looked_at(job);
        let up = self.nodes.values().filter(|node| node.up).count();
        if looked_at.is_empty() {
            let names = job.record.spec.nodes.join(" or ");
            let named = self.nodes.values().filter(|node| node.up && job.names(node)).count();
            return Some(if named > 0 {
                format!(
                    "{} that may be used cannot give a task an address of its own: see gridctl doctor there, or submit without --net grid",
                    nodes(named)
                )
            } else if up == 0 {
                "no node answers: see gridctl nodes".into()
            } else {
                format!(
                    "none of the {up} nodes that answer is {names}: see gridctl nodes, or submit without --node"
                )
            });
        }
        let among = nodes(looked_at.len());
        let most = |amount: fn(&Node) -> u64| looked_at.iter().map(|node| amount(node)).max().unwrap_or(0);
        let largest_cpu = most(|node| node.info.total.cpu.into()) as u32;
        let largest_memory = most(|node| node.info.total.memory);
        let of = |what: &str| {
            if looked_at.len() == 1 {
                format!("{among} has {what}")
            } else {
                format!("the largest of {among} has {what}")
            }
        };
        if largest_cpu < need.cpu {
            let (needs, has) = (cores(need.cpu), Cpus::from_milli(largest_cpu));
            return Some(format!(
                "needs {needs}; {}: ask for fewer, or join a larger node",
                of(&has.to_string())
            ));
        }
        if largest_memory < need.memory {
            let (needs, has) = (Bytes(need.memory), Bytes(largest_memory).to_string());
            return Some(format!(
                "needs {needs} of memory; {}: ask for less, or join a larger node",
                of(&has)
            ));
        }
        if !looked_at.iter().any(|node| node.info.total.holds(need)) {
            let (cpu, memory) = (cores(need.cpu), Bytes(need.memory));
            return Some(format!(
                "needs {cpu} and {memory} of memory on one node; none of {among} has both: ask for less, or join a larger node"
            ));
        }
        None
    }
}
