//! The thread that decides: it owns the two state machines of `grid-jobs` and the store.
//!
//! ```text
//!   events ─▶ [ take all that wait ─▶ handle ─▶ schedule ─▶ one transaction ─▶ carry out ] ─▶ outlets
//! ```
//!
//! What waits is taken together, so that under load one transaction serves many events: group commit. What nobody
//! acts upon, such as the end of a task when no other waits for its place, goes with the next transaction that is asked
//! for, within [`COMPANY`]. Nothing leaves before the transaction is durable. Messages between this node's home and host
//! never leave the thread.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use grid_jobs::home::{self, Home};
use grid_jobs::host::{self, Host};
use grid_jobs::message::{ToHome, ToHost};
use grid_jobs::record::{Change, Origin};
use grid_jobs::{LEASE, Now};
use libgrid::control::Submitted;
use libgrid::ids::{JobId, NodeId, Run};
use libgrid::node::Resources;
use libgrid::spec::JobSpec;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info};

use crate::store::Store;

/// How often time passes for the state machines.
const TICK: Duration = Duration::from_millis(500);

/// How many events one transaction serves at most.
const BATCH: usize = 2048;

/// How long after a transaction another one is put off, if all that it would let out is news: a stream of submissions
/// then takes the ends of earlier jobs along, instead of waiting for them to be written.
const COMPANY: Duration = Duration::from_millis(1);

/// How long to wait before a failed transaction is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// A message of `grid-jobs` on its way to another node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Letter {
    /// For the node's host.
    Host(ToHost),
    /// For the node's home.
    Home(ToHome),
}

/// Where actions go.
pub(crate) struct Outlets {
    pub(crate) letters: mpsc::UnboundedSender<(NodeId, Letter)>,
    pub(crate) runner: mpsc::UnboundedSender<host::Action>,
    pub(crate) collector: mpsc::UnboundedSender<home::Action>,
}

/// What the thread looks after.
pub(crate) struct View {
    pub(crate) home: Home,
    pub(crate) host: Host,
    watchers: HashMap<JobId, watch::Sender<()>>,
}

impl View {
    /// Tells of each change of a job from now on.
    pub(crate) fn watch(&mut self, job: JobId) -> watch::Receiver<()> {
        self.watchers.retain(|_, watcher| watcher.receiver_count() > 0);
        self.watchers.entry(job).or_insert_with(|| watch::Sender::new(())).subscribe()
    }
}

/// What an earlier agent left.
pub(crate) struct Recovered {
    /// The runs that the shims kept: [`host::Event::Adopted`] of each.
    pub(crate) adopted: Vec<host::Event>,
    /// The same, for the home.
    pub(crate) kept: BTreeSet<Run>,
    /// Whether the node takes no more tasks.
    pub(crate) drains: bool,
}

enum Event {
    Home(home::Event),
    Host(host::Event),
    Submit { spec: Arc<JobSpec>, origin: Origin, reply: oneshot::Sender<Submitted> },
    Look(Look),
}

/// Somebody's look at the state, on this thread.
type Look = Box<dyn FnOnce(&mut View) + Send>;

/// A handle of the thread; it ends when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Core(Sender<Event>);

/// The thread has ended, because the agent stops.
#[derive(Debug, thiserror::Error)]
#[error("the agent is stopping: try again when it runs")]
pub(crate) struct Stopping;

struct Thread {
    view: View,
    store: Store,
    me: NodeId,
    outlets: Outlets,
    tickets: HashMap<u64, oneshot::Sender<Submitted>>,
    next_ticket: u64,
    /// What is not written yet, and when the last transaction was.
    pending: Outcome,
    written: Instant,
}

/// What came out of a batch of events.
#[derive(Default)]
struct Outcome {
    changes: Vec<Change>,
    home: Vec<home::Action>,
    host: Vec<host::Action>,
    looks: Vec<Look>,
}

impl Outcome {
    /// Whether it has to be written, and nobody waits for it who could do something before it comes.
    fn can_wait(&self) -> bool {
        use home::Action::{Changed, Forget, Spent};
        !self.changes.is_empty()
            && self.looks.is_empty()
            && self.home.iter().all(|action| matches!(action, Changed(_) | Spent(_) | Forget(_)))
            && self.host.iter().all(|action| matches!(action, host::Action::Forget(_)))
    }
}

impl Core {
    /// Starts the thread. It ends, and the agent with it, if the store fails for good.
    pub(crate) fn start(
        me: NodeId,
        home: Home,
        host: Host,
        store: Store,
        outlets: Outlets,
        recovered: Recovered,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let mut thread = Thread::new(me, home, host, store, outlets);
        thread::Builder::new().name("core".into()).spawn(move || {
            thread.recover(recovered);
            thread.run(&receiver);
        })?;
        Ok(Self(sender))
    }

    pub(crate) fn home(&self, event: home::Event) {
        // Fails only when the agent stops.
        let _ = self.0.send(Event::Home(event));
    }

    pub(crate) fn host(&self, event: host::Event) {
        let _ = self.0.send(Event::Host(event));
    }

    /// The name of the job once it is written down.
    pub(crate) async fn submit(&self, spec: Arc<JobSpec>, origin: Origin) -> Result<Submitted, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Event::Submit { spec, origin, reply }).map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }

    /// Looks at the state as it is after all events that were sent before, and after they are durable.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut View) -> T + Send + 'static,
    ) -> Result<T, Stopping> {
        let (reply, answer) = oneshot::channel();
        let look = move |view: &mut View| {
            // Whoever asked may be gone.
            let _ = reply.send(look(view));
        };
        self.0.send(Event::Look(Box::new(look))).map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }

    /// Tells of each change of a job from now on.
    pub(crate) async fn watch(&self, job: JobId) -> Result<watch::Receiver<()>, Stopping> {
        self.look(move |view| view.watch(job)).await
    }
}

/// Now, for the state machines. `CLOCK_BOOTTIME` is also the clock of the shims' leases.
pub(crate) fn now() -> Now {
    Now { mono: Duration::from_nanos(grid_run::shim::now()), wall: SystemTime::now() }
}

impl Thread {
    fn new(me: NodeId, home: Home, host: Host, store: Store, outlets: Outlets) -> Self {
        Self {
            view: View { home, host, watchers: HashMap::new() },
            store,
            me,
            outlets,
            tickets: HashMap::new(),
            next_ticket: 0,
            pending: Outcome::default(),
            written: Instant::now(),
        }
    }

    /// Takes up what an earlier agent left, in one turn, before any time passes: with half of it known, room that is
    /// taken would seem to be free, and what the home places here meanwhile would be taken for lost.
    fn recover(&mut self, recovered: Recovered) {
        let Recovered { adopted, kept, drains } = recovered;
        let mut batch = VecDeque::from([Event::Host(host::Event::Drain(drains))]);
        batch.extend(adopted.into_iter().map(Event::Host));
        batch.push_back(Event::Home(home::Event::LocalRuns(kept)));
        self.turn(batch);
    }

    fn run(mut self, events: &Receiver<Event>) {
        let mut next_tick = Instant::now();
        loop {
            let mut batch = VecDeque::new();
            let wake =
                if self.pending.can_wait() { next_tick.min(self.written + COMPANY) } else { next_tick };
            match events.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(event) => batch.push_back(event),
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => return self.let_out(),
            }
            batch.extend(events.try_iter().take(BATCH));
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                batch.push_back(Event::Home(home::Event::Tick));
                batch.push_back(Event::Host(host::Event::Tick));
            }
            self.turn(batch);
        }
    }

    fn turn(&mut self, mut batch: VecDeque<Event>) {
        let now = now();
        let mut outcome = std::mem::take(&mut self.pending);
        loop {
            while let Some(event) = batch.pop_front() {
                self.handle(now, event, &mut batch, &mut outcome);
            }
            let actions = self.view.home.schedule(now);
            self.sort_home(actions, &mut batch, &mut outcome);
            if batch.is_empty() {
                break;
            }
        }
        self.pending = outcome;
        if !self.pending.can_wait() || self.written.elapsed() >= COMPANY {
            self.let_out();
        }
    }

    /// Writes what came out of events, and lets it out.
    fn let_out(&mut self) {
        let outcome = std::mem::take(&mut self.pending);
        self.commit(&outcome.changes);
        for action in outcome.home {
            self.carry_out(action);
        }
        for action in outcome.host {
            match action {
                host::Action::Send { to, message } => {
                    let _ = self.outlets.letters.send((to, Letter::Home(message)));
                }
                other => drop(self.outlets.runner.send(other)),
            }
        }
        for look in outcome.looks {
            look(&mut self.view);
        }
    }

    fn handle(&mut self, now: Now, event: Event, batch: &mut VecDeque<Event>, outcome: &mut Outcome) {
        match event {
            Event::Home(event) => {
                let actions = self.view.home.handle(now, event);
                self.sort_home(actions, batch, outcome);
            }
            Event::Host(event) => {
                for action in self.view.host.handle(now, event) {
                    match action {
                        host::Action::Send { to, message } if to == self.me => {
                            batch.push_back(Event::Home(home::Event::Message { from: to, message }));
                        }
                        other => outcome.host.push(other),
                    }
                }
            }
            Event::Submit { spec, origin, reply } => {
                self.next_ticket += 1;
                self.tickets.insert(self.next_ticket, reply);
                let event = home::Event::Submit { ticket: self.next_ticket, spec, origin };
                let actions = self.view.home.handle(now, event);
                self.sort_home(actions, batch, outcome);
            }
            Event::Look(look) => outcome.looks.push(look),
        }
    }

    fn sort_home(&self, actions: Vec<home::Action>, batch: &mut VecDeque<Event>, outcome: &mut Outcome) {
        for action in actions {
            match action {
                home::Action::Write(change) => outcome.changes.push(change),
                home::Action::Send { to, message } if to == self.me => {
                    batch.push_back(Event::Host(host::Event::Message { from: to, message }));
                }
                other => outcome.home.push(other),
            }
        }
    }

    fn commit(&mut self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let mut told = false;
        while let Err(error) = self.store.apply(changes) {
            // Nothing may happen that is not written down. Meanwhile the leases run out, and nothing runs twice.
            if !std::mem::replace(&mut told, true) {
                error!(%error, "cannot write the job records; waiting: make room on the disk of the state folder");
            }
            thread::sleep(RETRY);
        }
        self.written = Instant::now();
        if told {
            info!("the job records are written again");
        }
    }

    fn carry_out(&mut self, action: home::Action) {
        match action {
            home::Action::Accepted { ticket, job, waits } => {
                if let Some(reply) = self.tickets.remove(&ticket) {
                    let _ = reply.send(Submitted { job, waits });
                }
            }
            home::Action::Send { to, message } => {
                let _ = self.outlets.letters.send((to, Letter::Host(message)));
            }
            home::Action::Changed(job) => {
                if let Some(watcher) = self.view.watchers.get(&job) {
                    watcher.send_replace(());
                }
            }
            other => drop(self.outlets.collector.send(other)),
        }
    }
}

/// The deadline of a lease in the shims' clock, in nanoseconds.
pub(crate) fn deadline(until: Duration) -> u64 {
    u64::try_from(until.as_nanos()).unwrap_or(u64::MAX)
}

/// The lease that a task gets before the first heartbeat was answered.
pub(crate) fn first_lease() -> Duration {
    now().mono + LEASE
}

/// What a node lends, for the host.
pub(crate) fn lent(config: &crate::config::Config) -> Resources {
    let machine = crate::machine::total();
    Resources {
        cpu: config.limits.cores.map_or(machine.cpu, libgrid::units::Cpus::milli),
        memory: config.limits.memory.map_or(machine.memory, |limit| limit.0.min(machine.memory)),
    }
}

#[cfg(test)]
mod tests {
    use grid_jobs::record::TaskRecord;

    use super::*;

    /// A thread with news that is not written: of a job that somebody watches.
    fn thread(folder: &tempfile::TempDir) -> (Thread, watch::Receiver<()>) {
        let (letters, _) = mpsc::unbounded_channel();
        let (runner, _) = mpsc::unbounded_channel();
        let (collector, _) = mpsc::unbounded_channel();
        let me = NodeId(1);
        let nothing = Resources { cpu: 0, memory: 0 };
        let (id, change) = crate::store::tests::job(1);
        let home = Home::new(me, 1, 1, Duration::from_secs(1));
        let store = Store::open(&folder.path().join("jobs.redb")).unwrap();
        let outlets = Outlets { letters, runner, collector };
        let mut thread = Thread::new(me, home, Host::new(me, nothing), store, outlets);
        let watch = thread.view.watch(id);
        thread.pending.changes.push(change);
        thread.pending.home.push(home::Action::Changed(id));
        (thread, watch)
    }

    #[test]
    fn what_was_left_is_known_before_anything_is_placed() {
        let folder = tempfile::tempdir().unwrap();
        let me = NodeId(1);
        let (id, change) = crate::store::tests::job(1);
        let Change::Job(_, record) = change else { panic!("{change:?}") };
        let needs = record.spec.needs();
        let run = Run { task: id.task(0), epoch: 1 };
        let task = TaskRecord {
            epoch: 1,
            used: 1,
            node: Some(me),
            started: Some(SystemTime::UNIX_EPOCH),
            ended: None,
            saved: None,
            exported: None,
            back: None,
            kept: None,
            serial: None,
        };
        let mut home = Home::new(me, 1, 2, Duration::from_secs(1));
        home.restore(now(), id, record, vec![(0, task)]);
        let (letters, _) = mpsc::unbounded_channel();
        let (runner, mut ordered) = mpsc::unbounded_channel();
        let (collector, _) = mpsc::unbounded_channel();
        let outlets = Outlets { letters, runner, collector };
        let store = Store::open(&folder.path().join("jobs.redb")).unwrap();
        // Room for three, one of them taken.
        let mut thread = Thread::new(me, home, Host::new(me, needs.times(3)), store, outlets);
        let started = SystemTime::UNIX_EPOCH;
        let adopted = vec![host::Event::Adopted { run, needs, started, held: false, end: None }];
        thread.recover(Recovered { adopted, kept: BTreeSet::from([run]), drains: false });
        assert!(ordered.try_recv().is_err(), "something was begun before all was known");
        // The host tells the home of its run, and so of its room.
        thread.turn(VecDeque::from([Event::Host(host::Event::Tick)]));
        let mut begun = Vec::new();
        while let Ok(action) = ordered.try_recv() {
            match action {
                host::Action::Launch { run, .. } => begun.push((run.task.index, run.epoch)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(begun, [(1, 1), (2, 1)]);
        assert!(thread.view.host.has(run), "it was given up");
    }

    fn written(thread: &Thread) -> usize {
        thread.store.load().unwrap().1.len()
    }

    #[test]
    fn news_goes_with_what_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let (mut thread, watch) = thread(&folder);
        thread.written = Instant::now() + Duration::from_secs(60);
        thread.turn(VecDeque::new());
        assert_eq!((written(&thread), watch.has_changed().unwrap()), (0, false), "it waits");
        thread.turn(VecDeque::from([Event::Look(Box::new(|_| ()))]));
        assert_eq!((written(&thread), watch.has_changed().unwrap()), (1, true));
    }

    #[test]
    fn news_is_not_put_off_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let (mut thread, watch) = thread(&folder);
        thread.written = Instant::now() - COMPANY;
        thread.turn(VecDeque::new());
        assert_eq!((written(&thread), watch.has_changed().unwrap()), (1, true));
    }
}
