//! Tasks with `--net grid`: each has an address of its own as long as it is not done, also after its home was started again.

use std::collections::BTreeSet;

use grid_jobs::home::Event;
use grid_jobs::message::ToHome;
use libgrid::address::LAST_SERIAL;
use libgrid::ids::{Run, Selector};
use libgrid::node::{NodeInfo, Resources};
use libgrid::spec::{JobSpec, Net};

use crate::bench::{Bench, HOST, NOW, home, host};

fn array(count: u32) -> JobSpec {
    crate::bench::array(count).net(Net::Grid)
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
        Event::Node(NodeInfo { total: free, free, addresses, ..host() })
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
