//! The simulated grid: machines, what they keep, and the network between them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use grid_jobs::Now;
use grid_jobs::home::{self, Home};
use grid_jobs::host::{self, Host};
use grid_jobs::message::{Arrival, End, Fate, ToHome, ToHost};
use grid_jobs::record::{Change, JobRecord, Origin, TaskRecord};
use libgrid::ids::{JobId, NodeId, Run, TaskId};
use libgrid::node::{NodeInfo, Resources, Tier};
use libgrid::spec::{JobSpec, Net};
use libgrid::status::{MovePhase, Outcome, Usage};
use libgrid::units::Cpus;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub(crate) const STEP: Duration = Duration::from_millis(50);

/// How long a destination asks a source that does not know of the move.
pub(crate) const ASKED: Duration = Duration::from_secs(30);
pub(crate) const TOTAL: Resources = Resources { cpu: 4000, memory: 64 << 30 };

#[derive(Clone, Debug)]
pub(crate) enum Wire {
    Home(ToHome),
    Host(ToHost),
    Fates(Vec<(JobId, Fate)>),
}

/// A task in a shim.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) needs: Resources,
    pub(crate) left: Duration,
    pub(crate) ended: bool,
    /// Its next checkpoint's number is higher.
    pub(crate) saved: u64,
    /// It stands still, because it moves.
    pub(crate) held: bool,
    /// The node that may take it away, and for which run.
    pub(crate) departs: Option<(NodeId, u32)>,
}

/// A task on its way to a machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coming {
    pub(crate) at: Duration,
    pub(crate) to: NodeId,
    pub(crate) run: Run,
    pub(crate) arrival: Arrival,
    /// How long the source is asked.
    pub(crate) until: Duration,
    /// What was copied; nothing before it stands still over there.
    pub(crate) copy: Option<Copied>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    pub(crate) needs: Resources,
    pub(crate) left: Duration,
    pub(crate) saved: u64,
}

/// On the disk of a machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) number: u64,
    pub(crate) left: Duration,
}

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) jobs: BTreeMap<JobId, Arc<JobRecord>>,
    pub(crate) tasks: BTreeMap<TaskId, TaskRecord>,
}

pub(crate) struct Machine {
    pub(crate) agent: Option<(Home, Host)>,
    pub(crate) store: Store,
    pub(crate) shims: BTreeMap<Run, Process>,
    pub(crate) checkpoints: BTreeMap<TaskId, Vec<Checkpoint>>,
    pub(crate) leases: BTreeMap<NodeId, Duration>,
    /// When a crashed agent or machine comes back.
    pub(crate) back: Duration,
    pub(crate) cut: bool,
}

pub(crate) struct Grid {
    pub(crate) rng: StdRng,
    pub(crate) now: Duration,
    pub(crate) machines: BTreeMap<NodeId, Machine>,
    pub(crate) flying: Vec<(Duration, NodeId, NodeId, Wire)>,
    pub(crate) loss: f64,
    /// How often there is no room for results.
    pub(crate) full: f64,
    pub(crate) task_time: Duration,
    /// How often each task was seen to end by itself.
    pub(crate) finished: BTreeMap<TaskId, u32>,
    pub(crate) starts: BTreeMap<TaskId, u32>,
    /// Runs that went on from a checkpoint, where, and from which.
    pub(crate) resumed: BTreeMap<Run, (NodeId, u64)>,
    pub(crate) collects: Vec<(Duration, NodeId, Run, NodeId)>,
    /// When, of which home, of which task, the number, from where and whereto.
    pub(crate) exports: Vec<(Duration, NodeId, TaskId, u64, [NodeId; 2])>,
    pub(crate) abandoned: Vec<Run>,
    pub(crate) coming: Vec<Coming>,
    /// What a destination tells of the memory that comes while a task runs, and how much.
    pub(crate) ahead: Vec<(MovePhase, u64)>,
    /// How many tasks went on elsewhere without having been started again.
    pub(crate) moved: u32,
}

impl Process {
    pub(crate) fn new(needs: Resources, left: Duration, saved: u64) -> Self {
        Self { needs, left, ended: false, saved, held: false, departs: None }
    }
}

impl Grid {
    pub(crate) fn new(seed: u64, nodes: u32, loss: f64) -> Self {
        let machine = || Machine {
            agent: None,
            store: Store::default(),
            shims: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            leases: BTreeMap::new(),
            back: Duration::ZERO,
            cut: false,
        };
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: Duration::from_secs(1000),
            machines: (1..=nodes).map(|number| (NodeId(number), machine())).collect(),
            flying: Vec::new(),
            loss,
            full: 0.0,
            task_time: Duration::from_secs(3),
            finished: BTreeMap::new(),
            starts: BTreeMap::new(),
            resumed: BTreeMap::new(),
            collects: Vec::new(),
            exports: Vec::new(),
            abandoned: Vec::new(),
            coming: Vec::new(),
            ahead: Vec::new(),
            moved: 0,
        }
    }

    pub(crate) fn now(&self) -> Now {
        Now { mono: self.now, wall: SystemTime::UNIX_EPOCH + self.now }
    }

    pub(crate) fn boot(&mut self, id: NodeId) {
        let now = self.now();
        let infos: Vec<_> = self.machines.keys().map(|node| info(*node)).collect();
        let seed = self.rng.random();
        let machine = self.machines.get_mut(&id).unwrap();
        let mut home = Home::new(id, seed, 1, Duration::from_secs(1 << 30));
        for (job, record) in &machine.store.jobs {
            let range = job.task(0)..=job.task(u32::MAX);
            let tasks = machine.store.tasks.range(range).map(|(task, record)| (task.index, record.clone()));
            home.restore(now, *job, record.clone(), tasks.collect());
        }
        let mut host = Host::new(id, TOTAL);
        let mut host_actions = Vec::new();
        for (run, process) in &machine.shims {
            let end = process.ended.then(end);
            let (needs, started, held) = (process.needs, now.wall, process.held);
            let event = host::Event::Adopted { run: *run, needs, started, held, end };
            host_actions.extend(host.handle(now, event));
        }
        let kept = machine.shims.keys().copied().collect();
        for run in machine.shims.keys() {
            if let Some(newest) = machine.checkpoints.get(&run.task).and_then(|all| all.last()) {
                let event = host::Event::Saved { run: *run, number: newest.number };
                host_actions.extend(host.handle(now, event));
            }
        }
        machine.agent = Some((home, host));
        self.host_actions(id, host_actions);
        self.home(id, home::Event::LocalRuns(kept));
        for info in infos {
            self.home(id, home::Event::Node(info));
        }
    }

    pub(crate) fn home(&mut self, id: NodeId, event: home::Event) {
        let now = self.now();
        let Some((home, _)) = &mut self.machines.get_mut(&id).unwrap().agent else { return };
        let mut actions = home.handle(now, event);
        actions.extend(home.schedule(now));
        // Writing comes before everything else of the batch.
        actions.sort_by_key(|action| !matches!(action, home::Action::Write(_)));
        for action in actions {
            match action {
                home::Action::Write(change) => {
                    let store = &mut self.machines.get_mut(&id).unwrap().store;
                    match change {
                        Change::Job(job, record) => drop(store.jobs.insert(job, record)),
                        Change::Task(task, record) => drop(store.tasks.insert(task, *record)),
                        Change::Forget(job) => drop(store.jobs.remove(&job)),
                    }
                }
                home::Action::Send { to, message } => self.send(id, to, Wire::Host(message)),
                home::Action::Collect { run, node, .. } => {
                    let at = self.now + Duration::from_millis(self.rng.random_range(10..500));
                    self.collects.push((at, id, run, node));
                }
                home::Action::Abandon { run, .. } => self.abandoned.push(run),
                home::Action::Export { task, number, from, to } => {
                    let at = self.now + Duration::from_millis(self.rng.random_range(10..2000));
                    self.exports.push((at, id, task, number, [from, to]));
                }
                home::Action::AskFates { home, jobs } => {
                    let asked = &self.machines[&home];
                    if let Some((theirs, _)) = asked.agent.as_ref().filter(|_| !asked.cut) {
                        let fates = jobs.into_iter().map(|job| (job, theirs.fate(job))).collect();
                        self.send(home, id, Wire::Fates(fates));
                    }
                }
                home::Action::Gather { job, .. } => {
                    self.home(id, home::Event::Gathered { job, inputs: Ok(7) })
                }
                home::Action::Accepted { .. }
                | home::Action::Cut { .. }
                | home::Action::Changed(_)
                | home::Action::Spent(_)
                | home::Action::Forget(_) => (),
            }
        }
    }

    pub(crate) fn host(&mut self, id: NodeId, event: host::Event) {
        let now = self.now();
        let Some((_, host)) = &mut self.machines.get_mut(&id).unwrap().agent else { return };
        let actions = host.handle(now, event);
        self.host_actions(id, actions);
    }

    pub(crate) fn host_actions(&mut self, id: NodeId, actions: Vec<host::Action>) {
        for action in actions {
            let machine = self.machines.get_mut(&id).unwrap();
            match action {
                host::Action::Send { to, message } => self.send(id, to, Wire::Home(message)),
                host::Action::Launch { run, order, placement } => {
                    let needs = order.spec.needs();
                    assert_eq!((placement.index, placement.epoch), (run.task.index, run.epoch));
                    for before in &order.spec.after {
                        let mut tasks =
                            self.machines[&before.job.home].store.jobs[&before.job].spec.indices();
                        assert!(
                            tasks.all(|index| self.is_done(before.job.task(index))),
                            "{run} before {before}"
                        );
                    }
                    if let Some(serial) = placement.serial {
                        let tasks = &self.machines[&run.task.job.home].store.tasks;
                        let mut same = tasks.iter().filter(|(_, task)| task.serial == Some(serial));
                        assert!(
                            same.all(|(task, _)| *task == run.task),
                            "{run}: its address is another's, too"
                        );
                    }
                    let machine = self.machines.get_mut(&id).unwrap();
                    if let Some(arrival) = placement.arrives {
                        let at = self.soon();
                        let until = at + ASKED;
                        self.coming.push(Coming { at, to: id, run, arrival, until, copy: None });
                        continue;
                    }
                    let own = machine.checkpoints.entry(run.task).or_default();
                    let most = placement.from.unwrap_or(u64::MAX);
                    own.retain(|checkpoint| checkpoint.number <= most);
                    // What was brought away is fetched, if it is newer, from the home or for it: always there in time here.
                    let home = run.task.job.home;
                    let there = placement.exported.filter(|(exported, _)| *exported <= most);
                    if let Some((exported, at)) = there {
                        let at = if id == home { at } else { home };
                        let own = own.clone();
                        let theirs = self.machines[&at].checkpoints.get(&run.task);
                        let newer = theirs.into_iter().flatten().filter(|c| {
                            c.number <= exported && own.last().is_none_or(|last| last.number < c.number)
                        });
                        let newer: Vec<Checkpoint> = newer.copied().collect();
                        let machine = self.machines.get_mut(&id).unwrap();
                        machine.checkpoints.entry(run.task).or_default().extend(newer);
                    }
                    let machine = self.machines.get_mut(&id).unwrap();
                    let own = machine.checkpoints.entry(run.task).or_default();
                    let from = own.last().copied();
                    let left = from.map_or(self.task_time, |checkpoint| checkpoint.left);
                    let saved = placement.saved.max(from.map_or(0, |checkpoint| checkpoint.number));
                    machine.shims.insert(run, Process::new(needs, left, saved));
                    let resumed = from.map(|checkpoint| checkpoint.number);
                    self.resumed.extend(resumed.map(|number| (run, (id, number))));
                    *self.starts.entry(run.task).or_default() += 1;
                    assert!(!self.is_done(run.task), "{run} starts although its task is done");
                    let at = self.now().wall;
                    self.host(id, host::Event::Started { run, at, resumed });
                    resumed.into_iter().for_each(|number| self.host(id, host::Event::Saved { run, number }));
                }
                host::Action::Depart { run, to, epoch } => {
                    if let Some(process) = machine.shims.get_mut(&run) {
                        process.departs = Some((to, epoch));
                    }
                }
                host::Action::LetGo(run) => {
                    let Some(process) = machine.shims.get_mut(&run) else { continue };
                    let held = std::mem::take(&mut process.held);
                    process.departs = None;
                    if held {
                        assert!(!self.is_done(run.task), "{run} goes on although its task is done");
                        let at = self.now().wall;
                        self.host(id, host::Event::Started { run, at, resumed: None });
                    }
                }
                host::Action::Signal { .. } => (),
                host::Action::Fence(run) => {
                    machine.shims.remove(&run);
                    self.host(id, host::Event::Gone(run));
                }
                host::Action::Lease { home, until } => drop(machine.leases.insert(home, until)),
                host::Action::Forget(run) => drop(machine.shims.remove(&run)),
            }
        }
    }

    pub(crate) fn soon(&mut self) -> Duration {
        self.now + Duration::from_millis(self.rng.random_range(10..1500))
    }

    pub(crate) fn send(&mut self, from: NodeId, to: NodeId, wire: Wire) {
        if from == to {
            return self.deliver(from, to, wire);
        }
        if !self.rng.random_bool(self.loss) {
            let delay = Duration::from_millis(self.rng.random_range(1..400));
            self.flying.push((self.now + delay, from, to, wire));
        }
    }

    pub(crate) fn deliver(&mut self, from: NodeId, to: NodeId, wire: Wire) {
        if from != to && (self.machines[&from].cut || self.machines[&to].cut) {
            return;
        }
        match wire {
            Wire::Home(message) => self.home(to, home::Event::Message { from, message }),
            Wire::Host(message) => self.host(to, host::Event::Message { from, message }),
            Wire::Fates(fates) => {
                fates.into_iter().for_each(|(job, fate)| self.home(to, home::Event::Fate { job, fate }));
            }
        }
    }

    pub(crate) fn step(&mut self) {
        self.now += STEP;
        let ids: Vec<_> = self.machines.keys().copied().collect();
        for id in &ids {
            if self.machines[id].agent.is_none() && self.now >= self.machines[id].back {
                self.boot(*id);
            }
        }
        let due = |at: &Duration, now| *at <= now;
        let now = self.now;
        let (arrived, flying) =
            std::mem::take(&mut self.flying).into_iter().partition(|(at, ..)| due(at, now));
        self.flying = flying;
        let mut arrived: Vec<_> = arrived;
        arrived.sort_by_key(|(at, ..)| *at);
        for (_, from, to, wire) in arrived {
            self.deliver(from, to, wire);
        }
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.collects).into_iter().partition(|(at, ..)| due(at, now));
        self.collects = waiting;
        for (_, id, run, node) in ready {
            let reachable = id == node || !(self.machines[&id].cut || self.machines[&node].cut);
            let there = reachable && self.machines[&node].shims.contains_key(&run);
            let result = match there {
                true if self.rng.random_bool(self.full) => home::Collected::Failed("no room".into()),
                true => home::Collected::Whole,
                false => home::Collected::Unreachable,
            };
            self.home(id, home::Event::Collected { run, result });
        }
        let (ready, coming): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.exports).into_iter().partition(|(at, ..)| due(at, now));
        self.exports = coming;
        for (_, home, task, number, [from, to]) in ready {
            let there = [from, to].iter().all(|id| {
                let machine = &self.machines[id];
                machine.agent.is_some() && (*id == home || !machine.cut && !self.machines[&home].cut)
            });
            let theirs = self.machines[&from].checkpoints.get(&task).into_iter().flatten();
            let found = theirs.copied().find(|checkpoint| there && checkpoint.number == number);
            if let Some(checkpoint) = found {
                let own = self.machines.get_mut(&to).unwrap().checkpoints.entry(task).or_default();
                own.push(checkpoint);
                own.sort_by_key(|checkpoint| checkpoint.number);
            }
            let at = found.map(|checkpoint| (checkpoint.number, to));
            let rest = Duration::from_secs(5);
            self.home(home, home::Event::Exported { task, at, rest });
        }
        self.move_tasks();
        self.run_tasks(&ids);
        if self.now.as_secs().is_multiple_of(2) && self.now.subsec_millis() == 0 {
            self.gossip(&ids);
        }
        if self.now.as_millis().is_multiple_of(250) {
            for id in ids {
                self.home(id, home::Event::Tick);
                self.host(id, host::Event::Tick);
            }
        }
    }

    /// What the overlay spreads: how much is free on every node that can be reached.
    pub(crate) fn gossip(&mut self, ids: &[NodeId]) {
        for from in ids {
            let machine = &self.machines[from];
            let Some((_, host)) = &machine.agent else { continue };
            let told = NodeInfo { free: host.free(), ..info(*from) };
            let cut = machine.cut;
            for to in ids
                .iter()
                .filter(|to| *to == from || !(cut || self.machines[to].cut))
                .copied()
                .collect::<Vec<_>>()
            {
                self.home(to, home::Event::Node(told.clone()));
            }
        }
    }

    pub(crate) fn run_tasks(&mut self, ids: &[NodeId]) {
        let mut live: BTreeMap<TaskId, (NodeId, Run)> = BTreeMap::new();
        let stores: BTreeMap<JobId, Arc<JobRecord>> =
            self.machines.values().flat_map(|machine| machine.store.jobs.clone()).collect();
        for id in ids {
            let now = self.now;
            let machine = self.machines.get_mut(id).unwrap();
            let mut ended = Vec::new();
            for (run, process) in &mut machine.shims {
                let home = run.task.job.home;
                let lease = machine.leases.get(&home).copied().unwrap_or(Duration::ZERO);
                let frozen = home != *id && now > lease;
                if process.ended || process.held || frozen {
                    continue;
                }
                if let Some(other) = live.insert(run.task, (*id, *run)) {
                    panic!("at {now:?} {run} runs on node {id} and {} on node {}", other.1, other.0);
                }
                let record = &stores[&run.task.job];
                if let Some(at_once) = record.spec.array.and_then(|array| array.at_once()) {
                    let range = run.task.job.task(0)..=run.task.job.task(u32::MAX);
                    let alive = live.range(range).count() as u32;
                    assert!(alive <= at_once, "{alive} tasks of {} run", run.task.job);
                }
                process.left = process.left.saturating_sub(STEP);
                if process.left.is_zero() {
                    process.ended = true;
                    *self.finished.entry(run.task).or_default() += 1;
                    ended.push(*run);
                }
            }
            for run in ended {
                self.host(*id, host::Event::Ended { run, end: end() });
            }
        }
    }

    pub(crate) fn is_done(&self, task: TaskId) -> bool {
        let record = self.machines[&task.job.home].store.tasks.get(&task);
        record.is_some_and(|record| record.ended.is_some())
    }

    pub(crate) fn crash_agent(&mut self, id: NodeId, back_in: Duration) {
        let machine = self.machines.get_mut(&id).unwrap();
        machine.agent = None;
        machine.back = self.now + back_in;
        // It is the agent's to know.
        machine.shims.values_mut().for_each(|process| process.departs = None);
        self.collects.retain(|(_, home, ..)| *home != id);
        self.exports.retain(|(_, home, ..)| *home != id);
    }

    pub(crate) fn crash_machine(&mut self, id: NodeId, back_in: Duration) {
        self.crash_agent(id, back_in);
        let machine = self.machines.get_mut(&id).unwrap();
        machine.shims.clear();
        machine.leases.clear();
    }

    /// Writes a checkpoint of everything that runs on a machine.
    pub(crate) fn save(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).unwrap();
        let mut saved = Vec::new();
        for (run, process) in machine.shims.iter_mut().filter(|(_, process)| !process.ended) {
            process.saved += 1;
            let checkpoint = Checkpoint { number: process.saved, left: process.left };
            machine.checkpoints.entry(run.task).or_default().push(checkpoint);
            saved.push((*run, process.saved));
        }
        for (run, number) in saved {
            self.host(id, host::Event::Saved { run, number });
        }
    }

    /// The shims of a machine are killed, with their tasks; its agent sees it.
    pub(crate) fn crash_shims(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).unwrap();
        let lost: Vec<Run> =
            machine.shims.iter().filter(|(_, process)| !process.ended).map(|(run, _)| *run).collect();
        machine.shims.retain(|run, _| !lost.contains(run));
        lost.into_iter().for_each(|run| self.host(id, host::Event::Gone(run)));
    }

    pub(crate) fn submit(&mut self, home: NodeId, tasks: u32) -> JobId {
        self.submit_spec(home, array(tasks))
    }

    pub(crate) fn submit_spec(&mut self, home: NodeId, spec: JobSpec) -> JobId {
        let origin = Origin {
            owner: "user@node".into(),
            uid: 1000,
            gid: 1000,
            folder: "/".into(),
            inputs: None,
            stdin: None,
        };
        self.home(home, home::Event::Submit { ticket: 0, spec: Arc::new(spec), origin });
        *self.machines[&home].store.jobs.keys().last().unwrap()
    }

    /// Virtual seconds until all jobs are done.
    pub(crate) fn finish(&mut self, within: u64) -> u64 {
        let start = self.now;
        let deadline = start + Duration::from_secs(within);
        while !self.all_done() {
            assert!(self.now < deadline, "not done within {within} s:\n{}", self.undone());
            self.step();
        }
        (self.now - start).as_secs()
    }

    pub(crate) fn all_done(&self) -> bool {
        let mut jobs = self.machines.values().flat_map(|machine| &machine.store.jobs);
        jobs.all(|(id, record)| record.spec.indices().all(|index| self.is_done(id.task(index))))
    }

    pub(crate) fn undone(&self) -> String {
        let status = |id: &NodeId| {
            let (home, _) = self.machines[id].agent.as_ref()?;
            Some(format!("{:?}", home.summaries(false, None)))
        };
        self.machines.keys().filter_map(status).collect::<Vec<_>>().join("\n")
    }
}

pub(crate) fn array(tasks: u32) -> JobSpec {
    JobSpec::command(["x"]).cpus(Cpus::cores(1)).array(0, tasks - 1).net(Net::Grid)
}

pub(crate) fn info(node: NodeId) -> NodeInfo {
    NodeInfo {
        node,
        name: format!("node{node}"),
        addrs: Vec::new(),
        tier: Tier::Stack,
        total: TOTAL,
        free: TOTAL,
        load: 0,
        tasks: 0,
        version: String::new(),
        addresses: true,
        drained: false,
    }
}

/// Every other task prints, and so has something to be collected.
pub(crate) fn end() -> End {
    End { outcome: Outcome::Exited(0), usage: Usage::default(), printed: true }
}
