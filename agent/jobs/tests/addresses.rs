//! Tasks with `--net grid`: each has an address of its own as long as it is not done, also after its home was started again.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use grid_jobs::Now;
use grid_jobs::home::{Action, Event, Home};
use grid_jobs::message::{End, Placement, ToHome, ToHost};
use grid_jobs::record::{Change, JobRecord, Origin, TaskRecord};
use libgrid::address::LAST_SERIAL;
use libgrid::ids::{JobId, NodeId, Run, Selector, TaskId};
use libgrid::node::{NodeInfo, Resources, Tier};
use libgrid::spec::{JobSpec, Net};
use libgrid::status::{Outcome, Usage};
use libgrid::units::{Bytes, Cpus};

const ME: NodeId = NodeId(1);
const HOST: NodeId = NodeId(2);
const NOW: Now = Now { mono: Duration::from_secs(100), wall: SystemTime::UNIX_EPOCH };

/// A home with a host that has room for everything, and what was written down and started.
struct Bench {
    home: Home,
    jobs: BTreeMap<JobId, Arc<JobRecord>>,
    tasks: BTreeMap<TaskId, TaskRecord>,
    started: BTreeMap<Run, Placement>,
}

impl Bench {
    fn new(home: Home) -> Self {
        let mut bench =
            Self { home, jobs: BTreeMap::new(), tasks: BTreeMap::new(), started: BTreeMap::new() };
        let room = Resources { cpu: u32::MAX / 2, memory: 1 << 60 };
        bench.handle(Event::Node(NodeInfo {
            node: HOST,
            name: "node2".into(),
            addrs: Vec::new(),
            tier: Tier::Stack,
            total: room,
            free: room,
            load: 0,
            tasks: 0,
            version: String::new(),
            addresses: true,
            drained: false,
        }));
        bench
    }

    fn handle(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut actions = self.home.handle(NOW, event);
            actions.extend(self.home.schedule(NOW));
            for action in actions {
                match action {
                    Action::Write(Change::Job(id, record)) => drop(self.jobs.insert(id, record)),
                    Action::Write(Change::Task(id, record)) => drop(self.tasks.insert(id, *record)),
                    Action::Send { message: ToHost::Reserve { lease, count, .. }, .. } => {
                        let free = Resources { cpu: u32::MAX / 2, memory: 1 << 60 };
                        let message = ToHome::Granted { lease, count, free };
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

    fn submit(&mut self, spec: JobSpec) -> JobId {
        let origin =
            Origin { owner: "u@n".into(), uid: 1, gid: 1, folder: "/".into(), inputs: None, stdin: None };
        self.handle(Event::Submit { ticket: 0, spec: Arc::new(spec), origin });
        *self.jobs.last_key_value().unwrap().0
    }

    fn end(&mut self, run: Run) {
        let end = End { outcome: Outcome::Exited(0), usage: Usage::default(), printed: false };
        self.handle(Event::Message { from: HOST, message: ToHome::Ended { run, end } });
    }
}

fn array(count: u32) -> JobSpec {
    JobSpec::command(["x"])
        .array(0, count - 1)
        .cpus(Cpus::from_milli(1))
        .memory(Bytes(1 << 20))
        .net(Net::Grid)
}

fn home() -> Home {
    Home::new(ME, 7, 1, Duration::from_secs(1 << 30))
}

#[test]
fn when_all_addresses_are_in_use_tasks_wait_and_say_so() {
    let mut bench = Bench::new(home());
    let all = u32::from(LAST_SERIAL);
    let job = bench.submit(array(all + 6));
    let serials: BTreeSet<u16> = bench.started.values().filter_map(|placement| placement.serial).collect();
    assert!(serials.into_iter().eq(1..=LAST_SERIAL));
    let why = bench.home.status(Selector::Job(job), 0).unwrap().summary.why.unwrap();
    assert!(why.starts_with("all 4094 addresses that node 1 gives"), "{why}");
    // Others are not held up, and get none.
    bench.submit(array(1).net(Net::Host));
    let (run, placement) = bench.started.last_key_value().unwrap();
    assert_eq!((run.task.to_string(), placement.serial), ("j1.2/0".to_owned(), None));
    let (first, freed) = bench.started.first_key_value().map(|(run, place)| (*run, place.serial)).unwrap();
    bench.end(first);
    assert_eq!(bench.tasks[&first.task].serial, None);
    let next = Run { task: job.task(all), epoch: 1 };
    assert_eq!(bench.started[&next].serial, freed);
    for index in 1..=all {
        bench.end(Run { task: job.task(index), epoch: 1 });
    }
    assert_eq!(bench.started.len() as u32, all + 7);
}

#[test]
fn an_address_stays_over_losses_and_restarts_of_its_home() {
    let mut bench = Bench::new(home());
    let job = bench.submit(array(2));
    let runs: Vec<Run> = bench.started.keys().copied().collect();
    let before: Vec<_> = bench.started.values().map(|placement| placement.serial).collect();
    let address = bench.home.status(Selector::Job(job), 0).unwrap().tasks[0].address.unwrap();
    assert_eq!(u32::from(address) & 0xfff, u32::from(before[0].unwrap()));
    bench.handle(Event::Message { from: HOST, message: ToHome::Gone(runs[..1].to_vec()) });
    let again = Run { epoch: 2, ..runs[0] };
    assert_eq!(bench.started[&again].serial, before[0]);

    let mut second = home();
    let tasks = bench.tasks.iter().map(|(task, record)| (task.index, record.clone())).collect();
    second.restore(NOW, job, bench.jobs[&job].clone(), tasks);
    let status = second.status(Selector::Job(job), 0).unwrap();
    assert_eq!(status.tasks[0].address, Some(address));
    let mut bench = Bench::new(second);
    bench.submit(array(u32::from(LAST_SERIAL)));
    let given: BTreeSet<_> = bench.started.values().map(|placement| placement.serial).collect();
    assert!(given.len() == usize::from(LAST_SERIAL) - 2 && before.iter().all(|kept| !given.contains(kept)));
}

#[test]
fn a_node_that_can_give_no_address_gets_none_of_these_tasks() {
    let mut bench = Bench::new(home());
    let there = |addresses| {
        let free = Resources { cpu: 4000, memory: 1 << 40 };
        Event::Node(NodeInfo {
            node: HOST,
            name: "node2".into(),
            addrs: Vec::new(),
            tier: Tier::Stack,
            total: free,
            free,
            load: 0,
            tasks: 0,
            version: String::new(),
            addresses,
            drained: false,
        })
    };
    bench.handle(there(false));
    let job = bench.submit(array(1));
    let why = bench.home.status(Selector::Job(job), 0).unwrap().summary.why.unwrap();
    assert!(why.starts_with("the only node that may be used cannot give a task an address"), "{why}");
    assert!(bench.started.is_empty());
    bench.submit(array(1).net(Net::Host));
    assert_eq!(bench.started.len(), 1);
    bench.handle(there(true));
    assert_eq!(bench.started.len(), 2);
}
