//! A home and one host, without a network between them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use grid_jobs::Now;
use grid_jobs::home::{Action, Event, Home};
use grid_jobs::message::{End, Placement, ToHome, ToHost};
use grid_jobs::record::{Change, JobRecord, Origin, TaskRecord};
use libgrid::ids::{JobId, NodeId, Run, TaskId};
use libgrid::node::{NodeInfo, Resources, Tier};
use libgrid::spec::JobSpec;
use libgrid::status::{Outcome, Usage};
use libgrid::units::{Bytes, Cpus};

pub(crate) const ME: NodeId = NodeId(1);
pub(crate) const HOST: NodeId = NodeId(2);
pub(crate) const NOW: Now = Now { mono: Duration::from_secs(100), wall: SystemTime::UNIX_EPOCH };

const ROOM: Resources = Resources { cpu: u32::MAX / 2, memory: 1 << 60 };

/// A home with a host that has room for everything, and what was written down and started.
pub(crate) struct Bench {
    pub(crate) home: Home,
    pub(crate) now: Now,
    pub(crate) jobs: BTreeMap<JobId, Arc<JobRecord>>,
    pub(crate) tasks: BTreeMap<TaskId, TaskRecord>,
    pub(crate) started: BTreeMap<Run, Placement>,
    /// What the home asked other homes.
    pub(crate) fates: Vec<JobId>,
    /// Whose inputs it wanted gathered.
    pub(crate) gathers: Vec<JobId>,
    /// What it let go of.
    pub(crate) spent: Vec<u64>,
}

impl Bench {
    pub(crate) fn new(home: Home) -> Self {
        let (jobs, tasks, started) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (fates, gathers, spent) = (Vec::new(), Vec::new(), Vec::new());
        let mut bench = Self { home, now: NOW, jobs, tasks, started, fates, gathers, spent };
        bench.handle(Event::Node(host()));
        bench
    }

    pub(crate) fn handle(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut actions = self.home.handle(self.now, event);
            actions.extend(self.home.schedule(self.now));
            for action in actions {
                match action {
                    Action::Write(Change::Job(id, record)) => drop(self.jobs.insert(id, record)),
                    Action::Write(Change::Task(id, record)) => drop(self.tasks.insert(id, *record)),
                    Action::AskFates { jobs, .. } => self.fates.extend(jobs),
                    Action::Gather { job, .. } => self.gathers.push(job),
                    Action::Spent(inputs) => self.spent.push(inputs),
                    Action::Send { message: ToHost::Reserve { lease, count, .. }, .. } => {
                        let message = ToHome::Granted { lease, count, free: ROOM };
                        events.push(Event::Message { from: HOST, message });
                    }
                    Action::Send { message: ToHost::Start { order, tasks, .. }, .. } => {
                        for placement in tasks {
                            let run = Run { task: order.job.task(placement.index), epoch: placement.epoch };
                            self.started.insert(run, placement);
                        }
                    }
                    _ => (),
                }
            }
        }
    }

    pub(crate) fn submit(&mut self, spec: JobSpec) -> JobId {
        let origin =
            Origin { owner: "u@n".into(), uid: 1, gid: 1, folder: "/".into(), inputs: None, stdin: None };
        self.handle(Event::Submit { ticket: 0, spec: Arc::new(spec), origin });
        *self.jobs.last_key_value().unwrap().0
    }

    pub(crate) fn end(&mut self, run: Run) {
        self.end_with(run, 0);
    }

    pub(crate) fn end_with(&mut self, run: Run, status: i32) {
        let end = End { outcome: Outcome::Exited(status), usage: Usage::default(), printed: false };
        self.handle(Event::Message { from: HOST, message: ToHome::Ended { run, end } });
    }

    /// The same after a restart of the home, with what was written down.
    pub(crate) fn restarted(self) -> Self {
        let mut second = home();
        for (id, record) in &self.jobs {
            let of_job = self.tasks.iter().filter(|(task, _)| task.job == *id);
            let tasks = of_job.map(|(task, record)| (task.index, record.clone())).collect();
            second.restore(self.now, *id, record.clone(), tasks);
        }
        let mut bench = Self { home: second, ..self };
        bench.handle(Event::Node(host()));
        bench
    }
}

pub(crate) fn host() -> NodeInfo {
    NodeInfo {
        node: HOST,
        name: "node2".into(),
        addrs: Vec::new(),
        tier: Tier::Stack,
        total: ROOM,
        free: ROOM,
        load: 0,
        tasks: 0,
        version: String::new(),
        addresses: true,
        drained: false,
    }
}

pub(crate) fn home() -> Home {
    Home::new(ME, 7, 1, Duration::from_secs(1 << 30))
}

/// Of tasks that need next to nothing.
pub(crate) fn array(count: u32) -> JobSpec {
    JobSpec::command(["x"]).array(0, count - 1).cpus(Cpus::from_milli(1)).memory(Bytes(1 << 20))
}
