//! This node's part of its grid: everything that runs once the node is in a VO, wired together.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use grid_jobs::home::{self, Home};
use grid_jobs::host::{self, Host};
use grid_kernel::tree::Tree;
use grid_link::{Incoming, Link, LinkConfig};
use grid_transfer::session::Invitation;
use grid_vo::{NodeKey, RevocationList};
use libgrid::control::{Certificate, Failure, Kind};
use libgrid::ids::{Gpid, NodeId, Run, TaskId};
use libgrid::node::NodeInfo;
use libgrid::process::Process;
use libgrid::status::{Checkpoint, JobSummary, Obstacle, TaskCheckpoints};
use libgrid::sys::abi;
use libgrid::units::{Bytes, Span};
use libgrid::wire::stream;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::caller::Caller;
use crate::calls;
use crate::comm::{self, Comm};
use crate::config::Config;
use crate::control::{Typists, operations};
use crate::copy::Copies;
use crate::core::{self, Core, Outlets, View};
use crate::identity::{self, FOUNDER, Identity, failure};
use crate::machine;
use crate::membership::{self, Members, News};
use crate::network::Network;
use crate::output::Output;
use crate::peers::{Admitted, Peers, Request};
use crate::pipes::Pipes;
use crate::pipes::fifo::{self, Fifos};
use crate::processes::{self, Fate, Processes};
use crate::runner::{
    self, Departing, Departure, Keyboard, Outset, Query, Round, Rounding, Surveyed, Taker, moving,
};
use crate::spool;
use crate::staging::Staging;
use crate::store::Store;

/// How long to wait after a renewal that failed.
const RENEW_RETRY: Duration = Duration::from_secs(30);

/// How long the authority may take to renew a certificate.
const RENEW: Duration = Duration::from_secs(10);

/// How long others have to take a revocation.
const SPREAD: Duration = Duration::from_secs(5);

/// How long a node that is put out may take to hear of it.
const FAREWELL: Duration = Duration::from_secs(1);

/// The most jobs that are told as a table.
const MOST_JOBS: usize = 5_000;

/// How long a task that has just moved here is waited for, whoever wants to move it on.
const SETTLES: Duration = Duration::from_secs(60);

pub(crate) struct Grid {
    pub(crate) config: Arc<Config>,
    pub(crate) me: NodeId,
    pub(crate) identity: Arc<Identity>,
    pub(crate) link: Link,
    pub(crate) peers: Peers,
    pub(crate) core: Core,
    pub(crate) members: Members,
    pub(crate) output: Output,
    pub(crate) copies: Arc<Copies>,
    pub(crate) typists: Typists,
    pub(crate) comm: Comm,
    pub(crate) pipes: Pipes,
    pub(crate) network: Network,
    pub(crate) processes: Processes,
    /// What stands in for the module's files; and why it does not.
    pub(crate) tree: Mutex<Result<Tree, String>>,
    /// Where other nodes reach this one.
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) queries: mpsc::UnboundedSender<Query>,
    news: mpsc::Sender<News>,
}

impl Grid {
    /// Takes up this node's work: finds its tasks and jobs again, and then the other nodes. What those ask comes
    /// through the receiver.
    pub(crate) async fn start(
        config: Arc<Config>,
        identity: Identity,
        contacts: Vec<SocketAddr>,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Incoming>), Failure> {
        let internal = |error: &dyn std::fmt::Display| failure(Kind::Internal, error);
        let identity = Arc::new(identity);
        let me = identity.node();
        let copies = Arc::new(Copies::load(&config)?);
        let pipes = Pipes::load(&config)?;
        let (shims, found) = runner::find(&config).await.map_err(|error| internal(&error))?;
        let (link, incoming) =
            Link::bind(config.listen, identity.shown(), identity.clone(), LinkConfig::new(me))
                .map_err(|error| internal(&error))?;
        let addrs = identity::addresses(&config, link.local_addr()).map_err(|error| internal(&error))?;

        // Before any shim is started: those are followed that this process starts.
        let processes = Processes::start(&config, me).await;
        processes.keep(&found.pids);

        let kept: Vec<_> = found.kept.iter().filter_map(|kept| kept.address).collect();
        let network = Network::start(&config, me, &addrs, &kept);

        let store = Store::open(&config.store()).map_err(|error| internal(&error))?;
        let (serial, stored) = store.load().map_err(|error| internal(&error))?;
        let now = core::now();
        let mut home = Home::new(me, rand::random(), serial, config.retention.0);
        let unfinished = stored.iter().filter(|(_, record, tasks)| {
            tasks.iter().filter(|(_, task)| task.ended.is_some()).count() < record.spec.tasks() as usize
        });
        let spooled: Vec<u64> = unfinished.filter_map(|(_, record, _)| record.origin.inputs).collect();
        let jobs = stored.len();
        stored.into_iter().for_each(|(id, record, tasks)| home.restore(now, id, record, tasks));
        spool::sweep(&config, &spooled);

        let (letters, letters_end) = mpsc::unbounded_channel();
        let (actions, actions_end) = mpsc::unbounded_channel();
        let (collects, collects_end) = mpsc::unbounded_channel();
        let outlets = Outlets { letters, runner: actions, collector: collects };
        let total = core::lent(&config);
        let adopted = found.kept.iter().flat_map(|kept| {
            let limits = (Bytes(kept.limits.memory), kept.time.map(Span));
            let fenced = kept.end.as_ref().is_some_and(runner::is_fenced);
            let end = kept.end.clone().filter(|_| !fenced).map(|end| runner::end_of(end, limits));
            let (run, needs, started) = (kept.run, kept.limits, kept.started);
            let adopted = host::Event::Adopted { run, needs, started, held: kept.held, end };
            // That is no end of the task's own.
            std::iter::once(adopted).chain(fenced.then_some(host::Event::Gone(run)))
        });
        let recovered = core::Recovered {
            adopted: adopted.collect(),
            kept: found.kept.iter().map(|kept| kept.run).collect(),
            drains: config.draining().exists() || identity.is_revoked(me),
        };
        let core = Core::start(me, home, Host::new(me, total), store, outlets, recovered)
            .map_err(|error| internal(&error))?;
        info!(node = %me, jobs, tasks = found.kept.len(), "agent_recovered");

        let peers = Peers::new(link.clone());
        tokio::spawn(peers.clone().carry(letters_end));
        let (queries, queries_end) = mpsc::unbounded_channel();
        let staging = Staging { copies: copies.clone(), peers: peers.clone(), ports: config.ports() };
        let output = Output {
            config: config.clone(),
            me,
            core: core.clone(),
            peers: peers.clone(),
            staging: staging.clone(),
            shims: shims.clone(),
            queries: queries.clone(),
        };
        tokio::spawn(output.clone().collect_all(collects_end));
        let channel = (queries.clone(), queries_end);
        let (fifos, orders) = Fifos::new();
        let (asked, called) = mpsc::unbounded_channel();
        let runner = runner::start(
            config.clone(),
            me,
            core.clone(),
            (staging, network.clone(), processes.clone(), fifos, asked),
            (shims, found),
            channel,
            actions_end,
        );
        runner.map_err(|error| internal(&error))?;

        let info = NodeInfo {
            node: me,
            name: config.name.clone(),
            addrs: addrs.clone(),
            tier: machine::tier(processes.has_module(), processes.lacks().is_none()),
            total,
            free: total,
            load: machine::load(),
            tasks: 0,
            version: env!("CARGO_PKG_VERSION").into(),
            addresses: network.trouble().is_none(),
            drained: false,
        };
        core.home(home::Event::Node(info.clone()));
        let members = Members::default();
        let (news, news_end) = mpsc::channel(256);
        let revoked = {
            let identity = identity.clone();
            Box::new(move |node| identity.is_revoked(node))
        };
        let contacts = if contacts.is_empty() { Vec::new() } else { vec![(FOUNDER, contacts)] };
        let start = membership::Start {
            me: info,
            link: link.clone(),
            core: core.clone(),
            members: members.clone(),
            network: network.clone(),
            revoked,
            state_dir: config.state_dir.clone(),
            contacts,
        };
        membership::start(start, news_end);
        tokio::spawn(network.clone().follow(config.clone(), me, addrs.clone(), members.clone()));
        let grid = Arc::new(Self {
            config,
            me,
            identity,
            link,
            peers,
            core,
            members,
            output,
            copies,
            typists: Typists::default(),
            comm: Comm::default(),
            pipes,
            network,
            processes,
            tree: Mutex::new(Err("it is not mounted yet".into())),
            addrs,
            queries,
            news,
        });
        if grid.identity.is_revoked(me) {
            grid.put_out().await;
        }
        if !grid.processes.has_module() {
            let tree = crate::tree::mount(&grid).map_err(|error| error.to_string());
            if let Err(why) = &tree {
                info!(why, "no_tree");
            }
            *grid.tree.lock().unwrap_or_else(PoisonError::into_inner) = tree;
        }
        tokio::spawn(grid.clone().keep_certificate());
        comm::start(grid.clone());
        tokio::spawn(fifo::serve(grid.clone(), orders));
        tokio::spawn(calls::serve(grid.clone(), called));
        Ok((grid, incoming))
    }

    /// Hands the overlay a datagram, or drops it: a datagram may get lost.
    pub(crate) fn datagram(&self, from: NodeId, bytes: Vec<u8>) {
        let _ = self.news.try_send(News::Datagram { from, bytes });
    }

    /// Says goodbye to the others. Tasks run on; their shims wait for the next agent.
    pub(crate) async fn stop(&self) {
        *self.tree.lock().unwrap_or_else(PoisonError::into_inner) = Err("the agent stops".into());
        let _ = self.news.send(News::Leave).await;
        self.link.close().await;
    }

    /// The way to a task's standard input, if it runs here.
    pub(crate) async fn keyboard(&self, run: Run) -> Option<Keyboard> {
        let (reply, answer) = oneshot::channel();
        self.queries.send(Query::Keyboard { run, reply }).ok()?;
        answer.await.ok().flatten()
    }

    // === processes ===

    /// The processes of runs that are here, of these or of all.
    pub(crate) async fn processes_of(&self, runs: Option<Vec<Run>>) -> Vec<Process> {
        self.processes.list(processes::places(&self.queries, runs).await).await
    }

    /// Which task a process that is here is part of; if none, what became of it, as far as that is known.
    pub(crate) async fn find_here(&self, process: Gpid) -> Result<TaskId, Option<Fate>> {
        let places = processes::places(&self.queries, None).await;
        let run = self.processes.find(process, places).await;
        run.map(|run| run.task).ok_or_else(|| self.processes.fate(process))
    }

    /// The run that a process here is part of.
    pub(crate) async fn run_of(&self, pid: u32) -> Option<Run> {
        self.processes.run_of(pid, processes::places(&self.queries, None).await).await
    }

    /// All processes of tasks here: their pids, their ids, and their tasks.
    pub(crate) async fn ids(&self) -> Vec<(u32, Gpid, TaskId)> {
        self.processes.ids(processes::places(&self.queries, None).await).await
    }

    /// Whether somebody may know of a process: as the kernel module has it, everybody of those of their own user.
    pub(crate) fn may_see(&self, caller: &Caller, pid: u32) -> bool {
        caller.is_root() || self.processes.user(pid) == Some(caller.uid)
    }

    /// The jobs of this home, by their numbers, as the kernel module tells them.
    pub(crate) async fn jobs(&self) -> Result<Vec<abi::Job>, Failure> {
        let jobs = self.core.look(|view| {
            let jobs = view.home.summaries(true, None).into_iter();
            let told = |job: JobSummary| Some(operations::job(&job, view.home.record(job.id)?.origin.uid));
            jobs.filter_map(told).collect::<Vec<_>>()
        });
        let mut jobs = jobs.await.map_err(|error| failure(Kind::Unavailable, error))?;
        jobs.sort_by_key(|job| job.job);
        // The newest are kept.
        let surplus = jobs.len().saturating_sub(abi::JOBS_MAX.min(MOST_JOBS));
        jobs.drain(..surplus);
        Ok(jobs)
    }

    /// Sends a signal to a process of a run that is here.
    pub(crate) async fn signal_here(&self, run: Run, process: Gpid, signal: i32) -> Result<(), Failure> {
        let place = processes::places(&self.queries, Some(vec![run])).await.pop();
        let missing =
            || Failure::new(Kind::Missing, format!("{} does not run on node {} now", run.task, self.me));
        self.processes.signal(process, place.ok_or_else(missing)?, signal).await
    }

    // === checkpoints ===

    /// Writes a checkpoint of a run that is here, and waits until it is stored.
    pub(crate) async fn checkpoint(&self, run: Run) -> Result<Checkpoint, Failure> {
        let (reply, answer) = oneshot::channel();
        let _ = self.queries.send(Query::Checkpoint { run, reply });
        let written = answer.await.map_err(|_| failure(Kind::Unavailable, core::Stopping))?;
        written.map_err(|why| {
            Failure::new(Kind::State, format!("no checkpoint of {} was written: {why}", run.task))
        })
    }

    /// The checkpoints of a task that are here.
    pub(crate) async fn checkpoints(&self, task: TaskId) -> Result<TaskCheckpoints, Failure> {
        let (reply, answer) = oneshot::channel();
        let _ = self.queries.send(Query::Kept { task, reply });
        answer.await.map_err(|_| failure(Kind::Unavailable, core::Stopping))
    }

    /// Nothing if all of a checkpoint is here, as it was written.
    pub(crate) async fn verify(&self, task: TaskId, number: u64) -> Result<(), Failure> {
        let (reply, answer) = oneshot::channel();
        let _ = self.queries.send(Query::Verify { task, number, reply });
        let verified = answer.await.map_err(|_| failure(Kind::Unavailable, core::Stopping))?;
        verified.map_err(|why| {
            Failure::new(
                Kind::State,
                format!("checkpoint {number} of {task} cannot be used: {why}: choose another"),
            )
        })
    }

    /// Brings a checkpoint here from the task's home, to keep it for that.
    pub(crate) async fn keep(&self, task: TaskId, number: u64) -> Result<(), Failure> {
        let (reply, answer) = oneshot::channel();
        let _ = self.queries.send(Query::Keep { task, number, reply });
        let kept = answer.await.map_err(|_| failure(Kind::Unavailable, core::Stopping))?;
        kept.map_err(|why| Failure::new(Kind::State, why))
    }

    // === tasks that move ===

    /// What would stop a run that is here from being moved. One that has just moved here is waited for.
    pub(crate) async fn survey(&self, run: Run) -> Result<Surveyed, Failure> {
        let surveyed = moving::ask(&self.queries, |reply| Query::Survey { run, reply });
        let surveyed = tokio::time::timeout(SETTLES, surveyed).await.map_err(|_| {
            let why = format!(
                "{} is still being made on node {}, or its memory is not all there: try again later",
                run.task, self.me
            );
            Failure::new(Kind::State, why)
        })?;
        let surveyed = surveyed.ok_or_else(|| failure(Kind::Unavailable, core::Stopping))?;
        surveyed.map_err(|why| Failure::new(Kind::State, why))
    }

    /// What would stop a run of another node from going on here.
    pub(crate) async fn fits(&self, run: Run, there: Box<Surveyed>) -> Vec<Obstacle> {
        let until = tokio::time::Instant::now() + moving::FREED;
        let found = moving::ask(&self.queries, |reply| Query::Fits { run, there, until, reply }).await;
        found.unwrap_or_else(|| {
            vec![Obstacle { what: core::Stopping.to_string(), remedy: "start it again".into() }]
        })
    }

    /// That node takes over a run that is here, if the run's home says so.
    pub(crate) async fn depart(&self, run: Run, to: (NodeId, u32)) -> Departing {
        let departure = moving::ask(&self.queries, |reply| Query::Depart { run, to, reply }).await;
        departure.unwrap_or_else(|| Departure::Failed(core::Stopping.to_string()).into())
    }

    /// The files of a run that is here, and maybe its memory, for that node, if the run's home says so.
    pub(crate) async fn ahead(&self, run: Run, node: NodeId, invitation: Invitation, memory: bool) -> Outset {
        let to = Taker { node, addresses: crate::copy::addresses(self, node), invitation, memory };
        let begun = moving::ask(&self.queries, |reply| Query::Pages { run, to, reply }).await;
        begun.unwrap_or_else(|| Outset::Not(core::Stopping.to_string()))
    }

    /// The memory in rounds, as long as nobody says that the request of this key is over.
    pub(crate) async fn rounds(&self, run: Run, to: NodeId) -> (Outset, u64) {
        let key = rand::random();
        if !blocking(machine::soft_dirty).await {
            return (Outset::Not(moving::no_soft_dirty(self.me)), key);
        }
        let begun = moving::ask(&self.queries, |reply| Query::Rounds { run, to, key, reply }).await;
        (begun.unwrap_or_else(|| Outset::Not(core::Stopping.to_string())), key)
    }

    /// The next of them.
    pub(crate) async fn round(&self, run: Run, to: NodeId, round: u32) -> Rounding {
        let written = moving::ask(&self.queries, |reply| Query::Round { run, to, round, reply }).await;
        written.unwrap_or_else(|| (Round::Not("it has ended, or moves no more".into()), None))
    }

    /// Nobody wants more of them.
    pub(crate) fn rounds_over(&self, run: Run, key: u64) {
        // The runner ends only with the agent.
        let _ = self.queries.send(Query::RoundsOver { run, key });
    }

    /// Takes no more tasks, or takes them again; also after a restart.
    pub(crate) async fn drain(&self, draining: bool) -> Result<(), Failure> {
        if !draining {
            self.identity.must_be_of_vo()?;
        }
        let mark = self.config.draining();
        let noted = blocking(move || match draining {
            true => fs::File::create(&mark).and_then(|file| file.sync_all()),
            false => match fs::remove_file(&mark) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        });
        noted.await.map_err(|error| failure(Kind::Internal, error))?;
        info!(draining, "node_drained");
        self.core.host(host::Event::Drain(draining));
        // Without it, others would hear of it two seconds later.
        let _ = self.news.send(News::Changed).await;
        Ok(())
    }

    // === the VO ===

    /// Puts a node out of the VO: all others hear of it now, or when they are next in contact with anybody.
    pub(crate) async fn revoke(self: &Arc<Self>, name: &str) -> Result<(), Failure> {
        let node = self.members.find(name).or_else(|| name.parse().ok()).ok_or_else(|| {
            Failure::new(Kind::Missing, format!("there is no node {name}: see gridctl nodes"))
        })?;
        if node == self.me {
            let why = match self.identity.is_authority() {
                true => "the founding node cannot be revoked: it holds the VO's authority",
                false => "a node cannot put itself out of the VO: revoke it on the founding node",
            };
            return Err(Failure::new(Kind::Invalid, why));
        }
        let identity = self.identity.clone();
        let list = blocking(move || identity.revoke(node)).await?;
        info!(%node, version = list.version(), "node_revoked");
        // That it is told first is a courtesy to its owner.
        let _ = tokio::time::timeout(FAREWELL, self.clone().pass_on(node, list.clone())).await;
        self.learn(list).await;
        Ok(())
    }

    /// Takes a list of revoked nodes, acts on what is new, and passes it on.
    pub(crate) async fn learn(self: &Arc<Self>, list: RevocationList) {
        let identity = self.identity.clone();
        let copy = list.clone();
        let news = match blocking(move || identity.learn(copy)).await {
            Ok(news) => news,
            Err(error) => return warn!(%error, "a list of revoked nodes was refused"),
        };
        if news.contains(&self.me) {
            self.put_out().await;
        }
        for node in news.iter().filter(|node| **node != self.me) {
            self.link.evict(*node);
            self.core.host(host::Event::Evicted(*node));
            let _ = self.news.send(News::Evict(*node)).await;
        }
        if !news.is_empty() {
            for node in self.members.others() {
                tokio::spawn(self.clone().pass_on(node, list.clone()));
            }
        }
    }

    /// This node is not of the VO any more: what runs here for others ends, and nothing more begins. Its own that run go on to
    /// their end.
    async fn put_out(&self) {
        warn!("this node was put out of the VO");
        self.core.host(host::Event::Drain(true));
        let homes = |view: &mut View| view.host.runs().map(|run| run.task.job.home).collect::<BTreeSet<_>>();
        // An agent that stops does this when it starts again.
        for home in self.core.look(homes).await.unwrap_or_default() {
            if home != self.me {
                self.core.host(host::Event::Evicted(home));
            }
        }
    }

    pub(crate) async fn pass_on(self: Arc<Self>, node: NodeId, list: RevocationList) {
        if self.identity.is_revoked(node) {
            return;
        }
        let told = tokio::time::timeout(SPREAD, async {
            let mut duplex = self.peers.ask(node, &Request::Revocations(list)).await.ok()?;
            duplex.send.finish();
            duplex.send.delivered().await.ok()
        });
        if !matches!(told.await, Ok(Some(()))) {
            debug!(%node, "the list of revoked nodes was not delivered");
        }
    }

    /// A certificate of the VO, with its key, for a user of this machine; root's is good for servers, too.
    pub(crate) async fn certify(&self, caller: &Caller) -> Result<Certificate, Failure> {
        let key = NodeKey::generate().map_err(|error| failure(Kind::Internal, error))?;
        let public_key = key.public_key();
        let addresses = caller.is_root().then(|| self.addrs.iter().map(SocketAddr::ip).collect::<Vec<_>>());
        let user = caller.user().to_owned();
        let admitted = if self.identity.is_authority() {
            self.identity.certify(self.me, &user, addresses.as_deref(), public_key)
        } else {
            let request = Request::Certify { user, addresses, public_key };
            let unavailable = |error: &dyn std::fmt::Display| failure(Kind::Unavailable, error);
            let mut duplex = self.peers.ask(FOUNDER, &request).await.map_err(|error| unavailable(&error))?;
            let answer = tokio::time::timeout(RENEW, stream::read::<Admitted, _>(&mut duplex)).await;
            answer.map_err(|error| unavailable(&error))?.map_err(|error| unavailable(&error))?
        };
        let admission = admitted.map_err(|why| failure(Kind::Denied, why))?;
        Ok(Certificate {
            certificate: grid_vo::pem("CERTIFICATE", &admission.cert_der),
            key: key.pem(),
            authority: grid_vo::pem("CERTIFICATE", &admission.ca_der),
        })
    }

    /// Renews the certificate when half of its time is over.
    async fn keep_certificate(self: Arc<Self>) {
        loop {
            // A machine that slept finds its clock further on: look again at least every minute.
            let wait = self.identity.renewal().duration_since(SystemTime::now()).unwrap_or_default();
            if !wait.is_zero() {
                tokio::time::sleep(wait.min(Duration::from_secs(60))).await;
                continue;
            }
            match self.renew().await {
                Ok(()) => info!("certificate_renewed"),
                Err(why) => {
                    warn!(why, "the certificate could not be renewed yet");
                    tokio::time::sleep(RENEW_RETRY).await;
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), String> {
        let public_key = self.identity.public_key();
        let admission = if self.identity.is_authority() {
            self.identity.renew(self.me, public_key)?
        } else {
            let request = Request::Renew { public_key };
            let mut duplex = self.peers.ask(FOUNDER, &request).await.map_err(|error| error.to_string())?;
            let answer = tokio::time::timeout(RENEW, stream::read::<Admitted, _>(&mut duplex));
            answer.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())??
        };
        self.identity.renewed(&admission).map_err(|failure| failure.message)?;
        self.link.set_identity(self.identity.shown()).map_err(|error| error.to_string())
    }
}

/// Runs what writes files on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // Only a panic ends it early: let it go on where it is seen.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
